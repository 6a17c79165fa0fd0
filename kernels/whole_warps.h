// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/launch.h"

namespace memphis::kernels {

// Threads of a block that shares `num_items` pieces of work: whole warps, at most `max_threads`.
constexpr std::int64_t whole_warps(std::int64_t num_items, std::int64_t max_threads) {
  constexpr std::int64_t kWarp = 32;
  return std::clamp(ceil_div(num_items, kWarp) * kWarp, kWarp, max_threads);
}

}  // namespace memphis::kernels
