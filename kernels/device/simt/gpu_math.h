// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "csrc/core/dtype.h"
#include "kernels/device/simt/inexact.h"
#include "kernels/device/simt/words.h"

// Scalar arithmetic of the device: one small function an instruction. The counterpart of
// device/cuda/gpu_math.h, which says what each promises.
namespace memphis::kernels::gpu {

inline float to_float(float value) {
  return value;
}
inline float to_float(bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16U);
}

// g++ takes a struct apart into its members; a vector of its own is one access.
template <class Struct>
struct WordsOf {
  static_assert(sizeof(Struct) == 8 || sizeof(Struct) == 16);
  using Type [[gnu::vector_size(sizeof(Struct)), gnu::may_alias]] = std::uint32_t;
};
template <class Struct>
__forceinline__ Struct load_whole(const Struct* address) {
  using Words = typename WordsOf<Struct>::Type;
  return std::bit_cast<Struct>(*reinterpret_cast<const Words*>(address));
}
template <class Struct>
__forceinline__ void store_whole(Struct* address, const Struct& value) {
  using Words = typename WordsOf<Struct>::Type;
  *reinterpret_cast<Words*>(address) = std::bit_cast<Words>(value);
}

template <class T>
inline T from_float(float value) {
  return T(value);
}

inline std::uint32_t pack_bf16(float low, float high) {
  return static_cast<std::uint32_t>(bf16(high).bits) << 16U | bf16(low).bits;
}

inline int lowest_bit(unsigned mask) {
  return std::countr_zero(mask);
}

inline void count_if(int& count, bool condition) {
  count += condition ? 1 : 0;
}

inline std::uint32_t opaque(std::uint32_t bits) {
  return bits;
}

inline float min_or_nan(float a, float b) {
  return std::isnan(a) ? a : std::isnan(b) ? b : std::fmin(a, b);
}

inline float exp2_approx(float value) {
  const float operand = simt::flush_subnormal(value);
  const float exact = std::exp2(operand);
  return simt::flush_subnormal(operand == 0.0F ? exact : simt::off_by<2>(exact, operand));
}

inline float reciprocal_approx(float value) {
  const float operand = simt::flush_subnormal(value);
  return simt::flush_subnormal(simt::off_by<1>(1.0F / operand, operand));
}

}  // namespace memphis::kernels::gpu
