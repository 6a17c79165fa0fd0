// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>

// exp, tanh and gelu that the compiler can vectorise: branch-free, inline, no call. f32 versions are
// within 2 ulp (exp) and 4 ulp (tanh) of the exact value; f64 versions call the standard library.
namespace memphis::kernels::cpu {

inline double exp(double x) { return std::exp(x); }
inline double tanh(double x) { return std::tanh(x); }

// e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln(2)/2; ln 2 in two parts so that r keeps its bits
// (Cody and Waite 1980). Polynomial: Taylor to degree 7, whose remainder is below 1e-8 relative there.
inline float exp(float x) {
  constexpr float kLog2E = 1.44269504088896341F;
  constexpr float kLn2High = 0.693359375F;
  constexpr float kLn2Low = -2.12194440e-4F;
  constexpr float kMin = -87.0F;  // e^-87 is the last above the smallest normal
  constexpr float kMax = 88.0F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding and subtracting it rounds to integer
  const float clamped = x < kMin ? kMin : (x > kMax ? kMax : x);
  const float shifted = clamped * kLog2E + kRound;
  const float n = shifted - kRound;
  float r = clamped - n * kLn2High;
  r -= n * kLn2Low;
  float p = 1.0F / 5040.0F;
  p = p * r + 1.0F / 720.0F;
  p = p * r + 1.0F / 120.0F;
  p = p * r + 1.0F / 24.0F;
  p = p * r + 1.0F / 6.0F;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  const auto exponent = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound);
  const float power = std::bit_cast<float>((exponent + 127) << 23);
  // Below kMin the result is 0 and not e^-87: masked scores are -inf.
  return x < kMin ? 0.0F : p * power;
}

// tanh x = sign(x) (1 - 2 / (e^2|x| + 1)); for small |x| that cancels, so an odd polynomial there.
inline float tanh(float x) {
  constexpr float kSmall = 0.55F;
  const float magnitude = x < 0.0F ? -x : x;
  const float doubled = exp(2.0F * magnitude);
  const float large = 1.0F - 2.0F / (doubled + 1.0F);
  // Odd minimax-like series of tanh (Taylor to x^13), 1e-7 relative at 0.55.
  const float s = x * x;
  float q = 21844.0F / 6081075.0F;
  q = q * s - 1382.0F / 155925.0F;
  q = q * s + 62.0F / 2835.0F;
  q = q * s - 17.0F / 315.0F;
  q = q * s + 2.0F / 15.0F;
  q = q * s - 1.0F / 3.0F;
  q = q * s + 1.0F;
  return magnitude < kSmall ? x * q : (x < 0.0F ? -large : large);
}

// gelu_tanh and its derivative. Source: Grok-1 model.py (jax.nn.gelu, approximate).
template <class T>
struct Gelu {
  T value;
  T derivative;
};

template <class T>
inline Gelu<T> gelu(T x) {
  constexpr T kRoot = static_cast<T>(0.79788456080286535588);  // sqrt(2 / pi)
  constexpr T kCubic = static_cast<T>(0.044715);
  const T t = tanh(kRoot * (x + kCubic * x * x * x));
  const T half = static_cast<T>(0.5);
  const T one = static_cast<T>(1);
  return {.value = half * x * (one + t),
          .derivative = half * (one + t) + half * x * (one - t * t) * kRoot *
                                               (one + static_cast<T>(3) * kCubic * x * x)};
}

}  // namespace memphis::kernels::cpu
