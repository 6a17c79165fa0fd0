// SPDX-License-Identifier: Apache-2.0
#include "kernels/op_profile.h"

#include <chrono>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/check.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/matmul/matmul.h"
#include "tests/support/error_text.h"
#include "tests/support/on_devices.h"
#include "tests/support/test_tensor.h"

namespace memphis::test {
namespace {

using kernels::OpCheck;
using kernels::OpProfile;
using kernels::OpTotals;

class OpProfileTest : public OnDevices {
 protected:
  static const OpTotals* find(const std::vector<OpTotals>& totals, std::string_view op) {
    for (const OpTotals& each : totals) {
      if (each.op == op) {
        return &each;
      }
    }
    return nullptr;
  }
};

TEST_P(OpProfileTest, CountsCallsBytesAndProductsOfEachOp) {
  const OwnedStream stream(GetParam());
  const TestTensor x({{3, 8}, DType::f32}, GetParam(), random_normal(24, "x"));
  const TestTensor weight({{16, 8}, DType::f32}, GetParam(), random_normal(128, "weight"));
  const TestTensor y({{3, 16}, DType::f32}, GetParam());
  kernels::matmul_forward({.y_TN = y, .x_TK = x, .weight_NK = weight}, stream.view());
  std::vector<OpTotals> totals;
  {
    const OpProfile profile(stream.view(), 10);
    for (int i = 0; i < 2; ++i) {
      kernels::matmul_forward({.y_TN = y, .x_TK = x, .weight_NK = weight}, stream.view());
    }
    kernels::scale({.y = y, .x = y, .scale = 2}, stream.view());
    totals = profile.totals();
    EXPECT_EQ(profile.num_left_out(), 0);
  }
  kernels::scale({.y = y, .x = y, .scale = 2}, stream.view());  // in no profile
  ASSERT_EQ(totals.size(), 2U);
  const OpTotals* const matmul = find(totals, "matmul_forward");
  const OpTotals* const scale = find(totals, "scale");
  ASSERT_TRUE(matmul != nullptr && scale != nullptr);
  EXPECT_EQ(matmul->calls, 2);
  EXPECT_EQ(matmul->bytes, 2 * 4.0 * (3 * 8 + 16 * 8 + 3 * 16));
  EXPECT_EQ(matmul->flops, 2 * 2.0 * 3 * 8 * 16);
  EXPECT_EQ(scale->calls, 1);
  EXPECT_EQ(scale->flops, 0);
}

TEST_P(OpProfileTest, CountsWhatAnOpCallsWhereItIsCalled) {
  const OwnedStream stream(GetParam());
  const OpProfile profile(stream.view(), 10);
  {
    const OpCheck outer("outer", stream.view());
    outer.product(1, 1, 500);
    const OpCheck inner("inner", stream.view());
    inner.product(1, 1, 150);
  }
  const OpCheck under_way("under_way", stream.view());
  const std::vector<OpTotals> totals = profile.totals();
  ASSERT_EQ(totals.size(), 2U) << "a call that has not ended is not counted";
  EXPECT_EQ(find(totals, "outer")->flops, 700);
  EXPECT_EQ(find(totals, "inner")->flops, 300);
  EXPECT_EQ(find(totals, "outer")->calls, 1);
}

// Of the clock between one call and the next, and of nothing within: not between what an op calls.
TEST_P(OpProfileTest, CountsTheTimeBetweenCallsAlone) {
  const OwnedStream stream(GetParam());
  const OpProfile profile(stream.view(), 10);
  EXPECT_EQ(profile.seconds_between(), 0) << "there is no call yet";
  const auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(4)); };
  {
    const OpCheck first("first", stream.view());
    { const OpCheck inner("inner", stream.view()); }
    pause();
    const OpCheck again("inner", stream.view());
  }
  EXPECT_EQ(profile.seconds_between(), 0) << "one call of two others";
  pause();
  {
    const OpCheck second("second", stream.view());
    pause();
  }
  const double between = profile.seconds_between();
  double in_ops = 0;
  for (const OpTotals& each : profile.totals()) {
    in_ops += each.seconds;
  }
  EXPECT_GE(in_ops, 0);
  if (GetParam() == Device::cpu) {
    EXPECT_GE(between, 4e-3);
    EXPECT_GE(in_ops, 8e-3);
  } else {
    EXPECT_GE(between, 0);
  }
}

TEST_P(OpProfileTest, SaysHowManyCallsItHadNoRoomFor) {
  const OwnedStream stream(GetParam());
  const OpProfile profile(stream.view(), 2);
  for (int i = 0; i < 5; ++i) {
    const OpCheck call("op", stream.view());
  }
  EXPECT_EQ(profile.num_left_out(), 3);
  EXPECT_EQ(profile.totals().front().calls, 2);
}

TEST_P(OpProfileTest, IsOfItsOwnStream) {
  const OwnedStream stream(GetParam());
  const OpProfile profile(stream.view(), 2);
  int other = 0;
  const OpCheck elsewhere("elsewhere", Stream{.device = GetParam(), .handle = &other});
  EXPECT_TRUE(profile.totals().empty());
  EXPECT_EQ(profile.num_left_out(), 0);
}

INSTANTIATE_TEST_SUITE_P(Devices,
                         OpProfileTest,
                         testing::Values(Device::cpu, Device::cuda),
                         name_of_device);

TEST(OpProfile, IsOneAtATime) {
  const OpProfile first({}, 1);
  EXPECT_THROW(OpProfile({}, 1), ContractError);
}

}  // namespace
}  // namespace memphis::test
