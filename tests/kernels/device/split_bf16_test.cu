// SPDX-License-Identifier: Apache-2.0
//
// f32 as sums of three bf16.
#include "kernels/device/split_bf16.h"

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_launch.h>

#include "tests/kernels/device/device_array.h"

namespace memphis::kernels {
namespace {

using test::DeviceArray;

constexpr int kThreads = 64;

// The terms of pairs of neighbours, [pair][term].
__global__ void split_kernel(std::uint32_t* terms, const float* values) {
  const unsigned pair = blockIdx.x * kThreads + threadIdx.x;
  const gpu::SplitPair split = gpu::split_bf16(values[2 * pair], values[2 * pair + 1]);
  for (int i = 0; i < gpu::kSplitTerms; ++i) {
    terms[pair * gpu::kSplitTerms + i] = split.terms[i];
  }
}

// The sum of what became of each value, in f64.
std::vector<double> sums_of(std::vector<float> values) {
  const std::size_t count = values.size();
  values.resize((count + 2 * kThreads - 1) / (2 * kThreads) * (2 * kThreads), 1.0F);
  const std::size_t pairs = values.size() / 2;
  const DeviceArray<float> in(values);
  const DeviceArray<std::uint32_t> out(pairs * gpu::kSplitTerms, 0U);
  launch(split_kernel,
         {.grid = {.x = static_cast<std::int64_t>(pairs) / kThreads},
          .block = {.x = kThreads},
          .stream = {.device = Device::cuda, .handle = nullptr}},
         out.data(),
         static_cast<const float*>(in.data()));
  const std::vector<std::uint32_t> terms = out.values();
  std::vector<double> sums(count);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t term = 0; term < gpu::kSplitTerms; ++term) {
      const std::uint32_t word = terms[i / 2 * gpu::kSplitTerms + term];
      const std::uint32_t bits = i % 2 == 0 ? word << 16U : word & 0xFFFF0000U;
      sums[i] += static_cast<double>(std::bit_cast<float>(bits));
    }
  }
  return sums;
}

class SplitBf16 : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = test::no_device_reason(80);
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};

TEST_F(SplitBf16, HasAllBitsOfAValue) {
  std::vector<float> values = {0.0F, -0.0F, 1.0F, -1.0F, std::numeric_limits<float>::max()};
  // Every length of the fraction, at sizes from 2^-60 to 2^60, of both signs.
  for (int exponent = -60; exponent <= 60; exponent += 5) {
    for (int bit = 0; bit < 24; ++bit) {
      values.push_back(std::ldexp(1.0F + std::ldexp(1.0F, -bit), exponent));
      values.push_back(-std::ldexp(2.0F - std::ldexp(1.0F, -bit), exponent));
    }
  }
  const std::vector<double> sums = sums_of(values);
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(sums[i], static_cast<double>(values[i])) << "value " << i;
  }
}

TEST_F(SplitBf16, WhatIsNotFiniteBecomesNan) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<double> sums =
      sums_of({kInfinity, 1.0F, -kInfinity, std::numeric_limits<float>::quiet_NaN()});
  EXPECT_TRUE(std::isnan(sums[0]));
  EXPECT_EQ(sums[1], 1.0);
  EXPECT_TRUE(std::isnan(sums[2]));
  EXPECT_TRUE(std::isnan(sums[3]));
}

}  // namespace
}  // namespace memphis::kernels
