// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>

#include "csrc/core/dtype.h"

// Scalar arithmetic of the device: one small function an instruction.
namespace memphis::kernels::gpu {

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(bf16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16U);
}

// A struct of 8 or 16 bytes, aligned to as many, by one access: of a struct of its own the compiler may
// make several, and floats that went through integers it would keep apart from those that did not.
template <class Struct>
concept OfFloats = requires(Struct s) {
  requires std::is_same_v<decltype((s.values[0])), float&>;
};
template <class Struct>
struct WordsOf {
  static_assert(sizeof(Struct) == 8 || sizeof(Struct) == 16);
  using Two = std::conditional_t<OfFloats<Struct>, float2, uint2>;
  using Four = std::conditional_t<OfFloats<Struct>, float4, uint4>;
  using Type = std::conditional_t<sizeof(Struct) == 16, Four, Two>;
};
template <class Struct>
__device__ __forceinline__ Struct load_whole(const Struct* address) {
  using Words = typename WordsOf<Struct>::Type;
  return std::bit_cast<Struct>(*reinterpret_cast<const Words*>(address));
}
template <class Struct>
__device__ __forceinline__ void store_whole(Struct* address, const Struct& value) {
  using Words = typename WordsOf<Struct>::Type;
  *reinterpret_cast<Words*>(address) = std::bit_cast<Words>(value);
}

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
  return bf16::from_bits(__bfloat16_as_ushort(__float2bfloat16_rn(value)));
}

// Two floats rounded to bf16 in one register, the first in the low half.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// The index of the lowest set bit; `mask` is not 0.
__device__ __forceinline__ int lowest_bit(unsigned mask) {
  return __ffs(static_cast<int>(mask)) - 1;
}

// Adds one where the condition holds: one predicated instruction, for which the compiler takes two.
__device__ __forceinline__ void count_if(int& count, bool condition) {
  asm("{\n.reg .pred holds;\n"
      "setp.ne.u32 holds, %1, 0;\n"
      "@holds add.s32 %0, %0, 1;\n}"
      : "+r"(count)
      : "r"(static_cast<unsigned>(condition)));
}

// `bits` as they are, of which the compiler then knows nothing. What is packed into a word to be
// taken apart again lies in a register for each part otherwise.
__device__ __forceinline__ std::uint32_t opaque(std::uint32_t bits) {
  asm volatile("" : "+r"(bits));
  return bits;
}

// The smaller one, or NaN where one is (sm_80 and newer); fminf would lose it.
__device__ __forceinline__ float min_or_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// 2^x to 2 ulp, one MUFU instruction.
__device__ __forceinline__ float exp2_approx(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// 1 / x to 1 ulp, one MUFU instruction; 0 for an infinite x.
__device__ __forceinline__ float reciprocal_approx(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

}  // namespace memphis::kernels::gpu
