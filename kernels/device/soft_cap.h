// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gpu_math.h>

// The bend of a soft cap, cap tanh(y), for kernels whose values are in bf16: by the special-function
// unit, and both it and its derivative from one number. With r = 1 / (1 + 2^z), z = 2 log2(e) y,
//
//   tanh y = 1 - 2 r        d tanh y / dy = 4 r (1 - r)
//
// Error, with u = 2^-24 and a z that is off by 4 u of itself (three factors and a product): that is
// 0.9 u in r, as |z| ln 2 r (1 - r) < 0.23; the exponential's 2 ulp are r (1 - r) 4 u < u, the sum's
// rounding is r u. With a reciprocal of its own, good to 1 ulp, r is off by another 2 r u, and by
// 6 r u where four share one. In all below 7.5 u, so that tanh is off by less than 2^-20, absolute:
// that is what counts in the exponent of a softmax. Of a cap of 50 it is 5e-5, where a logit in bf16 is
// off by 2^-9 of itself. tanh.approx would be one operation, but off by 2^-11 of 1: 2 % of a
// probability. In r (1 - r) the error is absolute too, below 7.5 u.
// A NaN stays one; of four that share a reciprocal all become one.
namespace memphis::kernels::gpu {

// r
__device__ __forceinline__ float soft_cap_tail(float z) {
  return reciprocal_approx(exp2_approx(z) + 1.0F);
}

// r of four: one reciprocal of a product and nine multiplications, as the special-function unit takes
// eight times as long as a multiplication. From z = 31 on tanh is 1 in f32, so that four of 1 + 2^z
// may be multiplied.
__device__ __forceinline__ void soft_cap_tails(float (&z)[4]) {
  constexpr float kLargest = 31.0F;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    z[i] = 1.0F + exp2_approx(min_or_nan(z[i], kLargest));
  }
  const float first = z[0] * z[1];
  const float second = z[2] * z[3];
  const float both = reciprocal_approx(first * second);
  const float of_first = both * second;
  const float of_second = both * first;
  const float values[4] = {of_first * z[1], of_first * z[0], of_second * z[3], of_second * z[2]};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    z[i] = values[i];
  }
}

}  // namespace memphis::kernels::gpu
