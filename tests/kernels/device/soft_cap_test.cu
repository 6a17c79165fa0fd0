// SPDX-License-Identifier: Apache-2.0
//
// The soft cap's bend by the special-function unit against tanh in f64, within the bound that its
// header derives.
#include "kernels/device/soft_cap.h"

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_launch.h>

#include "tests/kernels/device/device_array.h"

namespace memphis::kernels {
namespace {

using test::DeviceArray;

constexpr int kThreads = 128;
constexpr int kEach = 4;  // of a thread

// tails[i] of z[i], those of kEach neighbours with one reciprocal or each with its own.
__global__ void tails_kernel(float* tails, const float* z, bool together) {
  const unsigned first = (blockIdx.x * kThreads + threadIdx.x) * kEach;
  float four[kEach];
  for (int i = 0; i < kEach; ++i) {
    four[i] = z[first + i];
  }
  if (together) {
    gpu::soft_cap_tails(four);
  } else {
    for (float& value : four) {
      value = gpu::soft_cap_tail(value);
    }
  }
  for (int i = 0; i < kEach; ++i) {
    tails[first + i] = four[i];
  }
}

// y from -23 to 23, in steps that are no fractions of 2, and as far as f32 goes. The four of a thread
// lie far apart.
std::vector<float> arguments() {
  constexpr int kCount = 64 * kThreads * kEach;
  std::vector<float> y(kCount);
  for (int i = 0; i < kCount; ++i) {
    const int place = i / kEach + i % kEach * (kCount / kEach);
    y[static_cast<std::size_t>(i)] = static_cast<float>(23.0 * (2.0 * place / kCount - 1.0));
  }
  for (std::size_t i = 0; i < 64; ++i) {
    y[i * 5] = std::ldexp(i % 2 == 0 ? 1.0F : -1.0F, static_cast<int>(i) * 4 - 126);
  }
  return y;
}

class SoftCap : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (!device_available(Device::cuda)) {
      GTEST_SKIP() << device_unavailable_reason();
    }
  }

  static std::vector<float> tails_of(const std::vector<float>& z) {
    const DeviceArray<float> in(z);
    const DeviceArray<float> out(z.size(), 0.0F);
    launch(tails_kernel,
           {.grid = {.x = static_cast<std::int64_t>(z.size()) / (kThreads * kEach)},
            .block = {.x = kThreads},
            .shared_bytes = 0,
            .stream = {.device = Device::cuda, .handle = nullptr}},
           out.data(),
           static_cast<const float*>(in.data()),
           GetParam());
    return out.values();
  }
};

TEST_P(SoftCap, IsTanhWithinTheDerivedBound) {
  const std::vector<float> y = arguments();
  std::vector<float> z;
  for (const float each : y) {
    z.push_back(2.0F * 1.4426950408889634F * each);
  }
  const std::vector<float> tails = tails_of(z);
  const double unit = std::ldexp(1.0, -24);
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double exact = std::tanh(static_cast<double>(y[i]));
    const double r = static_cast<double>(tails[i]);
    ASSERT_NEAR(1.0 - 2.0 * r, exact, 16 * unit) << "y = " << y[i];
    ASSERT_NEAR(r * (1.0 - r), (1.0 - exact * exact) / 4.0, 7.5 * unit) << "y = " << y[i];
  }
}

TEST_P(SoftCap, KeepsNanAndTakesInfinityToItsLimit) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> z(kThreads * kEach, 1.0F);
  z[1] = std::nanf("");
  z[4] = kInfinity;
  z[10] = -kInfinity;
  for (std::size_t i = 20; i < 24; ++i) {  // all four of a thread
    z[i] = i % 2 == 0 ? 31.5F : kInfinity;
  }
  z[24] = kInfinity;  // all but one
  z[25] = 100.0F;
  z[27] = 60.0F;
  const std::vector<float> tails = tails_of(z);
  for (std::size_t i = 20; i < 24; ++i) {
    EXPECT_NEAR(tails[i], 0.0, std::ldexp(1.0, -30)) << i;
  }
  EXPECT_TRUE(std::isnan(tails[1]));
  EXPECT_NEAR(tails[4], 0.0, std::ldexp(1.0, -30));
  EXPECT_NEAR(tails[10], 1.0, std::ldexp(1.0, -22));
  for (const std::size_t other : {5U, 6U, 7U, 8U, 9U, 11U, 26U}) {
    EXPECT_NEAR(tails[other], 1.0 / 3.0, std::ldexp(1.0, -22));
  }
}

INSTANTIATE_TEST_SUITE_P(Reciprocals, SoftCap, testing::Bool(), [](const auto& together) {
  return std::string(together.param ? "OneForFour" : "OneEach");
});

}  // namespace
}  // namespace memphis::kernels
