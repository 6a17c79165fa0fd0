// SPDX-License-Identifier: Apache-2.0
//
// The same run on the CPU in f32 and elsewhere: losses agree within what the dtype can do.
#include <cmath>

#include <gtest/gtest.h>

#include "csrc/train/trainer.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

std::vector<double> losses(const TemporaryDirectory& directory,
                           const std::string& device,
                           const std::string& compute,
                           int experts_per_token,
                           int num_steps) {
  // Widths are multiples of 8, as the GPU's bf16 products want them. At the learning rate that the
  // other tests take, rounding alone sends two runs apart within these steps. In f32 every token
  // goes to all experts: the choice of K among them is not continuous, so a token whose K-th and
  // next probability differ by a rounding (there is one in the first batch) moves the loss by more
  // than f32's error. device_gradient_test holds the choice itself.
  Trainer trainer(tiny_config(directory,
                              {"run.device=" + device,
                               "precision.compute=" + compute,
                               "schedule.steps=50",
                               "optimizer.learning_rate=1e-3",
                               "model.experts_per_token=" + std::to_string(experts_per_token),
                               "model.vocab_size=264"}),
                  {});
  std::vector<double> result;
  for (int i = 0; i < num_steps; ++i) {
    result.push_back(trainer.step().loss);
  }
  return result;
}

void expect_agreement(const std::string& device, const std::string& compute, double relative) {
  const TemporaryDirectory directory;
  // A simulated step takes seconds: enough of them to see that one builds on the other.
  const bool simulated = device == "cuda" && device_info(Device::cuda).simulated;
  const int num_steps = simulated ? 3 : 50;
  const int experts = compute == "f32" ? 4 : 2;
  const std::vector<double> exact = losses(directory, "cpu", "f32", experts, num_steps);
  const std::vector<double> actual = losses(directory, device, compute, experts, num_steps);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NEAR(actual[i], exact[i], relative * exact[i]) << "step " << i + 1;
  }
}

TEST(DeviceAgreement, CpuInBf16) {
  expect_agreement("cpu", "bf16", 2e-2);
}

TEST(DeviceAgreement, GpuInF32) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  expect_agreement("cuda", "f32", 1e-4);
}

TEST(DeviceAgreement, GpuInBf16) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  expect_agreement("cuda", "bf16", 2e-2);
}

}  // namespace
}  // namespace memphis::test
