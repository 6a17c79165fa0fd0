// SPDX-License-Identifier: Apache-2.0
//
// 2^x by a polynomial against exp2 in f64: every f32 of the range that it reduces x to, but for the
// smallest, where its error is that of one rounding.
#include "kernels/device/exp2_polynomial.h"

#include <algorithm>
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
constexpr int kMantissas = 1 << 23;
constexpr int kEach = 2048;  // of a thread

// The largest error, in ulp of the exact value, at 1 + i / 2^23 times `scale`: of each thread's i.
__global__ void errors_kernel(float* errors, float scale) {
  const auto thread = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  double largest = 0;
  for (int i = thread * kEach; i < (thread + 1) * kEach; ++i) {
    const float x = (1.0F + static_cast<float>(i) * 0x1p-23F) * scale;
    const double exact = exp2(static_cast<double>(x));
    const double ulp = exact < 1.0 ? 0x1p-24 : 0x1p-23;
    const double error = fabs(static_cast<double>(gpu::exp2_polynomial(x)) - exact) / ulp;
    largest = error <= largest ? largest : error;
  }
  errors[thread] = static_cast<float>(largest);
}

__global__ void values_kernel(float* values, const float* x) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[i] = gpu::exp2_polynomial(x[i]);
}

class Exp2Polynomial : public testing::Test {
 protected:
  void SetUp() override {
    if (!device_available(Device::cuda)) {
      GTEST_SKIP() << device_unavailable_reason();
    }
  }

  static float largest_error(float scale) {
    constexpr int kCount = kMantissas / kEach;
    const DeviceArray<float> errors(kCount, 0.0F);
    launch(errors_kernel,
           {.grid = {.x = kCount / kThreads}, .block = {.x = kThreads}, .stream = kStream},
           errors.data(),
           scale);
    const std::vector<float> values = errors.values();
    return *std::max_element(values.begin(), values.end());
  }
  // As many as fill blocks.
  static std::vector<float> values_of(const std::vector<float>& x) {
    const DeviceArray<float> in(x);
    const DeviceArray<float> out(x.size(), 0.0F);
    launch(values_kernel,
           {.grid = {.x = static_cast<std::int64_t>(x.size()) / kThreads},
            .block = {.x = kThreads},
            .stream = kStream},
           out.data(),
           static_cast<const float*>(in.data()));
    return out.values();
  }

  static constexpr Stream kStream = {.device = Device::cuda, .handle = nullptr};
};

TEST_F(Exp2Polynomial, IsOffByLessThanTheUnitsTwoUlp) {
  for (const float scale : {0x1p-2F, 0x1p-3F}) {
    EXPECT_LT(largest_error(scale), 1.94F) << scale;
    EXPECT_LT(largest_error(-scale), 1.94F) << -scale;
  }
  for (const float scale : {0x1p-4F, 0x1p-5F, 0x1p-6F, 0x1p-7F, 0x1p-8F, 0x1p-24F, 0x1p-60F}) {
    EXPECT_LT(largest_error(scale), 1.2F) << scale;
    EXPECT_LT(largest_error(-scale), 1.2F) << -scale;
  }
}

TEST_F(Exp2Polynomial, IsTheSameInEveryOctave) {
  const std::vector<float> fractions = {
      -0.5F, -0.375F, -0.25F, -0.0625F, 0.0F, 0x1p-10F, 0.25F, 0.4375F};
  std::vector<float> x(fractions);
  for (int n = -125; n <= 126; ++n) {
    for (const float fraction : fractions) {
      x.push_back(static_cast<float>(n) + fraction);
    }
  }
  x.insert(x.end(), {-126.0F, 127.0F});
  const std::size_t count = x.size();
  x.resize((count + kThreads - 1) / kThreads * kThreads, 0.0F);
  const std::vector<float> values = values_of(x);
  for (std::size_t i = fractions.size(); i < count - 2; ++i) {
    const int n = static_cast<int>(i / fractions.size()) - 126;
    // Halves are rounded to even n.
    if (std::fabs(fractions[i % fractions.size()]) < 0.5F) {
      EXPECT_EQ(values[i], std::ldexp(values[i % fractions.size()], n)) << x[i];
    }
    EXPECT_NEAR(values[i], std::exp2(x[i]), std::ldexp(std::exp2(x[i]), -22)) << x[i];
  }
  EXPECT_EQ(values[count - 2], 0x1p-126F);
  EXPECT_EQ(values[count - 1], 0x1p127F);
}

TEST_F(Exp2Polynomial, KeepsNan) {
  std::vector<float> x(kThreads, 1.0F);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> values = values_of(x);
  EXPECT_TRUE(std::isnan(values[3]));
  EXPECT_EQ(values[4], 2.0F);
}

}  // namespace
}  // namespace memphis::kernels
