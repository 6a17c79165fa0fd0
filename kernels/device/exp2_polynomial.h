// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include <gpu_math.h>

// 2^x without the special-function unit, for kernels that it bounds: as good as exp2_approx, and
// ten operations of units that take eight times as many a cycle.
namespace memphis::kernels::gpu {

// For x from -126 to 127; a NaN stays one. 2^x = 2^n p(f) with n = round(x) and f = x - n, which is
// exact, and so is the product. p is the minimax fit of degree 5 with p(0) = 1, relative error
// 9.2e-8, with those last bits of its coefficients that a search found best. Over all f it is off
// by 1.94 ulp at most.
__device__ __forceinline__ float exp2_polynomial(float x) {
  // Added to x it rounds it, and its low bits are then n and the bias of exponents.
  constexpr float kRound = 12582912.0F + 127.0F;  // 1.5 * 2^23 + 127
  const float rounded = x + kRound;
  const float f = x - (rounded - kRound);
  float p = 1.32647972e-3F;
  p = fmaf(p, f, 9.6713528e-3F);
  p = fmaf(p, f, 5.55073358e-2F);
  p = fmaf(p, f, 2.40222529e-1F);
  p = fmaf(p, f, 6.93147004e-1F);
  p = fmaf(p, f, 1.0F);
  constexpr int kMantissaBits = 23;
  return p * std::bit_cast<float>(std::bit_cast<std::uint32_t>(rounded) << kMantissaBits);
}

}  // namespace memphis::kernels::gpu
