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
                           int num_steps) {
  // Widths are multiples of 8, as the GPU's bf16 products want them. At the learning rate that the
  // other tests take, rounding alone sends two runs apart within these steps.
  Trainer trainer(tiny_config(directory,
                              {"run.device=" + device,
                               "precision.compute=" + compute,
                               "schedule.steps=50",
                               "optimizer.learning_rate=1e-3",
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
  const std::vector<double> exact = losses(directory, "cpu", "f32", num_steps);
  const std::vector<double> actual = losses(directory, device, compute, num_steps);
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
