// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/math.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/finite_difference.h"

namespace memphis::kernels::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kSmallestNormal = std::numeric_limits<float>::min();

// Error of `actual` in units of the last place of the float nearest to `exact`.
double ulps(float actual, double exact) {
  const auto nearest = std::fabs(static_cast<float>(exact));
  const double ulp = static_cast<double>(std::nextafter(nearest, kInfinity)) - nearest;
  return std::abs(static_cast<double>(actual) - exact) / ulp;
}

// The largest value of `error` over floats of every sign and exponent, subnormals included. The
// step is a prime, so that the low bits of the mantissas vary; 2 million values take 0.1 s.
template <class Error>
double worst_over_floats(const Error& error) {
  constexpr std::uint64_t kStep = 1999;
  double worst = 0;
  float worst_at = 0;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32U); bits += kStep) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (!std::isfinite(x)) {
      continue;
    }
    const double here = error(x);
    if (!(here <= worst)) {  // NaN is the worst
      worst = here;
      worst_at = x;
      if (std::isnan(here)) {
        break;
      }
    }
  }
  testing::Test::RecordProperty("worst", std::to_string(worst));
  testing::Test::RecordProperty("worst_at", std::to_string(worst_at));
  return worst;
}

TEST(CpuMath, ExpIsWithinOneUlp) {
  EXPECT_LE(worst_over_floats([](float x) {
              const double exact = std::exp(static_cast<double>(x));
              if (exact < kSmallestNormal) {
                return exp(x) == 0.0F ? 0.0 : kNan;
              }
              if (static_cast<float>(exact) == kInfinity) {
                return exp(x) == kInfinity ? 0.0 : kNan;
              }
              return ulps(exp(x), exact);
            }),
            1.0);
}

TEST(CpuMath, ExpIsWithinOneUlpNearItsLimits) {
  for (const float limit : {-87.33654F, 88.72283F}) {
    float x = std::nextafter(limit, 0.0F);
    for (int i = 0; i < 100000; ++i) {
      ASSERT_LE(ulps(exp(x), std::exp(static_cast<double>(x))), 1.0) << x;
      x = std::nextafter(x, 0.0F);
    }
  }
}

TEST(CpuMath, TanhIsWithinOneAndAHalfUlp) {
  EXPECT_LE(
      worst_over_floats([](float x) { return ulps(tanh(x), std::tanh(static_cast<double>(x))); }),
      1.5);
}

TEST(CpuMath, SpecialValues) {
  EXPECT_EQ(exp(0.0F), 1.0F);
  EXPECT_EQ(exp(-kInfinity), 0.0F);
  EXPECT_EQ(exp(kInfinity), kInfinity);
  EXPECT_EQ(exp(88.73F), kInfinity);
  EXPECT_EQ(tanh(kInfinity), 1.0F);
  EXPECT_EQ(tanh(-kInfinity), -1.0F);
  EXPECT_TRUE(std::signbit(tanh(-0.0F)));
  EXPECT_EQ(gelu(0.0F).value, 0.0F);
  EXPECT_EQ(gelu(0.0F).derivative, 0.5F);
}

TEST(CpuMath, NanGivesNan) {
  for (const float x : {kNan, -kNan}) {
    EXPECT_TRUE(std::isnan(exp(x)));
    EXPECT_TRUE(std::isnan(tanh(x)));
    EXPECT_TRUE(std::isnan(gelu(x).value));
    EXPECT_TRUE(std::isnan(gelu(x).derivative));
  }
}

// Relative to the exact value plus the unit of the largest intermediate: the exponent 2u of the
// sigmoid carries |2u| roundings into the result.
TEST(CpuMath, GeluHoldsItsRelativeAccuracy) {
  for (float x = -9.0F; x < 9.0F; x += 0.00037F) {
    const double u = 0.79788456080286535588 * (x + 0.044715 * x * x * static_cast<double>(x));
    const double exact = x / (1.0 + std::exp(-2.0 * u));
    const double bound = std::abs(exact) * 0x1p-24 * (6.0 + 6.0 * std::abs(u));
    ASSERT_NEAR(gelu(x).value, exact, bound) << x;
    // The derivative is a sum of terms of size up to its maximum, 1.13.
    ASSERT_NEAR(gelu(x).derivative,
                gelu(static_cast<double>(x)).derivative,
                1.13 * 0x1p-24 * (6.0 + 6.0 * std::abs(u)))
        << x;
  }
}

TEST(CpuMath, GeluIsTheTanhFormula) {
  for (double x = -8.0; x < 8.0; x += 0.01) {
    const double u = 0.79788456080286535588 * (x + 0.044715 * x * x * x);
    EXPECT_NEAR(gelu(x).value, 0.5 * x * (1.0 + std::tanh(u)), 1e-15 * 8) << x;
  }
}

TEST(CpuMath, GeluDerivativeMatchesDifferences) {
  for (double x = -6.0; x < 6.0; x += 0.1) {
    const auto value = [&](double offset) { return gelu(x + offset).value; };
    const test::Derivative expected = test::derivative(value, 0x1p-14, test::noise_of(value));
    EXPECT_NEAR(gelu(x).derivative, expected.value, expected.bound) << x;
  }
}

TEST(CpuMath, GeluStaysFiniteWhereItsArgumentOverflows) {
  EXPECT_EQ(gelu(1e18F).value, 1e18F);
  EXPECT_EQ(gelu(1e18F).derivative, 1.0F);
  EXPECT_EQ(gelu(-1e18F).value, 0.0F);
  EXPECT_EQ(gelu(-1e18F).derivative, 0.0F);
}

}  // namespace
}  // namespace memphis::kernels::cpu
