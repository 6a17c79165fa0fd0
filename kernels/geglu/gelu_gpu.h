// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <gpu_math.h>

// The activation of gated experts, for every kernel that applies it: the same bits in all of them.
namespace memphis::kernels::cuda {

struct Gelu {
  float value;
  float derivative;
};

// x s with s = 1 / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3), which is x/2 (1 + tanh u), and its
// derivative s (1 + x (1 - s) 2u'). 1 + tanh would cancel for negative x, where s keeps its bits, and
// tanh.approx is good to 2^-11 only; 1 - s would cancel for positive x, where e^-2u s keeps them.
// Values of type f32 take the exponential to its last bits; for bf16, which keeps eight, it is one
// instruction of the special-function unit, as the reciprocal is for both.
template <class T>
__device__ __forceinline__ Gelu gelu(float x) {
  constexpr bool kExact = std::is_same_v<T, float>;
  constexpr float kTwoRoots = 1.5957691216057307F;  // 2 sqrt(2 / pi)
  constexpr float kCubic = 0.044715F;
  constexpr float kUnit = kExact ? kTwoRoots : kTwoRoots * 1.4426950408889634F;  // log2(e)
  constexpr float kLargest = 1e37F;  // finite, as is 1 + it, and s is not subnormal
  const float square = x * x;
  const float power = x * fmaf(square, -kUnit * kCubic, -kUnit);
  const float e = fminf(kExact ? expf(power) : gpu::exp2_approx(power), kLargest);
  const float s = gpu::reciprocal_approx(1.0F + e);
  const float value = x * s;
  return {value, fmaf(value * (e * s), fmaf(square, 3.0F * kTwoRoots * kCubic, kTwoRoots), s)};
}

}  // namespace memphis::kernels::cuda
