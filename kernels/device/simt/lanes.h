// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>

namespace memphis::kernels::simt {

constexpr int kWarpSize = 32;

// Calls body(lane) for each bit of `lanes`, from the lowest.
template <class Body>
void for_lanes(unsigned lanes, const Body& body) {
  for (; lanes != 0; lanes &= lanes - 1) {
    body(std::countr_zero(lanes));
  }
}

}  // namespace memphis::kernels::simt
