// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace memphis::kernels {

// What the backward pass of an op does to the gradients of its weights.
//
//   add    dweight += this call's sum
//   write  dweight = this call's sum, also where it is a sum over nothing: what was there is not
//          read. The bits of `add` to zeros, but for the sign of a zero, which `add` loses where an
//          op forms its sum apart from what it adds it to, and for subnormal sums, which are zeros
//          where a GPU adds in memory.
//
// The first call of a step writes, so that nobody needs to clear 4 bytes a parameter and to read
// them back.
//
// Source      MXNet, OpReqType: kWriteTo and kAddTo.
enum class WeightGradient : std::uint8_t { add, write };

}  // namespace memphis::kernels
