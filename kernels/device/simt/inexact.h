// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// What instructions that are not exact do with a value.
namespace memphis::kernels::simt {

// .ftz: a subnormal number is a zero of its sign.
inline float flush_subnormal(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0F, value) : value;
}

// An approximate instruction's result, which may be off by kUlps: as far as a hash of the operand
// says, in no direction and the same in every run. What needs more than is promised is seen.
template <int kUlps>
float off_by(float exact, float operand) {
  if (!std::isnormal(exact)) {
    return exact;
  }
  std::uint32_t hash = std::bit_cast<std::uint32_t>(operand) * 0x9E3779B1U;
  hash = (hash ^ hash >> 15U) * 0x85EBCA77U;
  const auto ulps = static_cast<std::int32_t>((hash >> 16U) % (2U * kUlps + 1U)) - kUlps;
  return std::bit_cast<float>(std::bit_cast<std::int32_t>(exact) + ulps);
}

}  // namespace memphis::kernels::simt
