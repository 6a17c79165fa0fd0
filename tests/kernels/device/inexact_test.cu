// SPDX-License-Identifier: Apache-2.0
//
// Approximate instructions of the simulated device: off by what PTX lets them be, and no more.
#include "kernels/device/simt/inexact.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

#include <gpu_math.h>

namespace memphis::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::int64_t ulps_between(float a, float b) {
  return std::int64_t{std::bit_cast<std::int32_t>(a)} - std::bit_cast<std::int32_t>(b);
}

// The least and the most that an instruction's results are off by, over operands of all sizes.
struct Range {
  std::int64_t least = 0;
  std::int64_t most = 0;
};
template <class Instruction, class Exact>
Range range_of(const Instruction& instruction, const Exact& exact) {
  Range range;
  for (int i = 1; i < 20000; ++i) {
    const float operand = static_cast<float>(i) * 0.0061F;
    for (const float value : {operand, -operand}) {
      const std::int64_t off = ulps_between(instruction(value), exact(value));
      range.least = std::min(range.least, off);
      range.most = std::max(range.most, off);
    }
  }
  return range;
}

TEST(Inexact, ExponentialIsOffByTwoBothWays) {
  const Range range =
      range_of([](float x) { return gpu::exp2_approx(x); }, [](float x) { return std::exp2(x); });
  EXPECT_EQ(range.least, -2);
  EXPECT_EQ(range.most, 2);
}

TEST(Inexact, ReciprocalIsOffByOneBothWays) {
  const Range range =
      range_of([](float x) { return gpu::reciprocal_approx(x); }, [](float x) { return 1.0F / x; });
  EXPECT_EQ(range.least, -1);
  EXPECT_EQ(range.most, 1);
}

TEST(Inexact, IsTheSameEachTime) {
  for (const float x : {0.3F, -7.25F, 100.0F}) {
    EXPECT_EQ(gpu::exp2_approx(x), gpu::exp2_approx(x));
    EXPECT_EQ(gpu::reciprocal_approx(x), gpu::reciprocal_approx(x));
  }
}

// The table of PTX's ex2 and rcp.
TEST(Inexact, WhatTheTableOfSpecialValuesSaysIsExact) {
  EXPECT_EQ(gpu::exp2_approx(0.0F), 1.0F);
  EXPECT_EQ(gpu::exp2_approx(-1e-40F), 1.0F);
  EXPECT_EQ(gpu::exp2_approx(-kInfinity), 0.0F);
  EXPECT_EQ(gpu::exp2_approx(kInfinity), kInfinity);
  EXPECT_EQ(gpu::exp2_approx(-130.0F), 0.0F);  // a subnormal result
  EXPECT_TRUE(std::isnan(gpu::exp2_approx(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_EQ(gpu::reciprocal_approx(kInfinity), 0.0F);
  EXPECT_EQ(gpu::reciprocal_approx(1e-40F), kInfinity);
  EXPECT_EQ(gpu::reciprocal_approx(-1e-40F), -kInfinity);
  EXPECT_EQ(gpu::reciprocal_approx(3e38F), 0.0F);
}

}  // namespace
}  // namespace memphis::kernels
