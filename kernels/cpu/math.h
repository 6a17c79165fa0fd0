// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

// exp, tanh and gelu in a form that the compiler vectorises: inline, branch-free, no call. The f32
// versions are held by the test to 1 ulp (exp) and 1.5 ulp (tanh) over every exponent; NaN gives
// NaN and infinities their limits. The f64 versions call the standard library.
namespace memphis::kernels::cpu {

inline double exp(double x) {
  return std::exp(x);
}
inline double tanh(double x) {
  return std::tanh(x);
}

// For x in [kExpMin, kExpMax] alone. e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln(2)/2; ln 2 in
// two parts so that r keeps its bits (Cody and Waite 1980). Polynomial: 1 + r + r^2 q(r), q the
// minimax fit of degree 4, relative error 3.1e-9.
constexpr float kExpMin = -87.33654F;  // ln 2^-126, the smallest normal number
constexpr float kExpMax = 88.722839F;  // ln of the largest
inline float exp_within_range(float x) {
  constexpr float kLog2E = 1.44269504088896341F;
  constexpr float kLn2High = 0.693359375F;
  constexpr float kLn2Low = -2.12194440e-4F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding and subtracting it rounds to integer
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  float r = x - n * kLn2High;
  r -= n * kLn2Low;
  float q = 1.381446724e-3F;
  q = q * r + 8.368780836e-3F;
  q = q * r + 4.166839272e-2F;
  q = q * r + 1.666651964e-1F;
  q = q * r + 4.999999404e-1F;
  const float p = (r * r) * q + r + 1.0F;
  // The low bits of `shifted` are n, and those of kRound are zero: what is added to the exponent of
  // p is n. Attention of a step of configs/bench_cpu.yaml, one Emerald Rapids core: 60 ms with
  // this, 67 ms where 2^n is two factors, each with an exponent of its own.
  constexpr int kMantissaBits = 23;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) +
                              (std::bit_cast<std::uint32_t>(shifted) << kMantissaBits));
}

// A result below the smallest normal number is 0: masked scores are -inf, and a subnormal product
// would cost a microcode assist each.
inline float exp(float x) {
  const float above = x * std::numeric_limits<float>::infinity();  // or NaN
  const float within = exp_within_range(x);
  const float result = x <= kExpMax ? within : above;
  return x < kExpMin ? 0.0F : result;
}

// tanh x = sign(x) (1 - 2 / (e^2|x| + 1)), which is 1 from |x| = 9.02 on. For small |x| that
// cancels; there x + x^3 q(x^2), q the minimax fit of degree 4, relative error 4.4e-9.
inline float tanh(float x) {
  constexpr float kSmall = 0.625F;
  constexpr float kOne = 10.0F;
  const float magnitude = std::fabs(x);
  const float bounded = magnitude > kOne ? kOne : magnitude;
  const float large = 1.0F - 2.0F / (exp_within_range(2.0F * bounded) + 1.0F);
  const float s = x * x;
  float q = -5.704986863e-3F;
  q = q * s + 2.063908800e-2F;
  q = q * s - 5.373971537e-2F;
  q = q * s + 1.333144158e-1F;
  q = q * s - 3.333328068e-1F;
  const float small = magnitude + magnitude * (s * q);
  return std::copysign(magnitude >= kSmall ? large : small, x);  // of NaN, small is NaN
}

template <class T>
struct Gelu {
  T value;
  T derivative;
};

// gelu(x) = x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3), and its derivative. Written as
// x sigmoid(2u): one exp and one division, where tanh evaluates both its forms, and no cancellation
// where tanh u is near -1. The derivative is finite for |x| < 1e19; an infinite x gives NaN in it.
// Source: Grok-1 model.py (jax.nn.gelu, approximate).
template <class T>
inline Gelu<T> gelu(T x) {
  constexpr T kTwoRoots = static_cast<T>(1.5957691216057307);  // 2 sqrt(2 / pi)
  constexpr T kCubic = static_cast<T>(0.044715);
  const T one = static_cast<T>(1);
  const T square = kCubic * x * x;
  const T e = exp(-kTwoRoots * x * (one + square));
  const T sigmoid = one / (one + e);
  // 1 - sigmoid without cancellation; for negative x it has none, and e may be infinite.
  const T product = e * sigmoid;
  const T difference = one - sigmoid;
  const T complement = x > static_cast<T>(0) ? product : difference;
  const T slope = kTwoRoots * (one + static_cast<T>(3) * square);  // d(2u)/dx
  return {.value = x * sigmoid, .derivative = sigmoid + x * sigmoid * complement * slope};
}

}  // namespace memphis::kernels::cpu
