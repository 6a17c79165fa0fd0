// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>

#include <gpu_math.h>

// f32 as sums of bf16, for tensor cores that multiply those alone.
namespace memphis::kernels::gpu {

// Of words of two bf16, the first in the low half: what both have in one of the halves.
__device__ __forceinline__ std::uint32_t low_halves(std::uint32_t first, std::uint32_t second) {
  return second << 16U | (first & 0xFFFFU);
}
__device__ __forceinline__ std::uint32_t high_halves(std::uint32_t first, std::uint32_t second) {
  return (second & 0xFFFF0000U) | first >> 16U;
}

// What a tensor core takes of two f32: each is the sum of kSplitTerms bf16 of eight bits, cut off one
// after the other, which is all of its 24; an infinite one becomes NaN. terms[i] has both i-th.
constexpr int kSplitTerms = 3;
struct SplitPair {
  std::uint32_t terms[kSplitTerms];
};

__device__ __forceinline__ SplitPair split_bf16(float first, float second) {
  SplitPair pair;
#pragma unroll
  for (std::uint32_t& term : pair.terms) {
    const auto first_bits = std::bit_cast<std::uint32_t>(first);
    const auto second_bits = std::bit_cast<std::uint32_t>(second);
    term = high_halves(first_bits, second_bits);
    first -= std::bit_cast<float>(first_bits & 0xFFFF0000U);
    second -= std::bit_cast<float>(second_bits & 0xFFFF0000U);
  }
  return pair;
}

}  // namespace memphis::kernels::gpu
