// SPDX-License-Identifier: Apache-2.0
//
// How CUDA loads kernels, which it decides when it begins.
#include <string>

#include <gtest/gtest.h>

#include "csrc/core/device.h"
#include "csrc/core/device_simt.h"
#include "csrc/core/error.h"
#include "tests/support/environment_variable.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

constexpr const char* kName = "CUDA_MODULE_LOADING";
constexpr const char* kFix = "mpirun -x CUDA_MODULE_LOADING=EAGER";

std::string refusal() {
  const std::string text = test::error_text<PreflightError>([] { require_kernels_at_once(); });
  EXPECT_TRUE(test::follows_grammar(text)) << text;
  EXPECT_NE(text.find(kFix), std::string::npos) << text;
  return text;
}

TEST(KernelsAtOnce, AreThereWhereTheyWereAskedFor) {
  const test::EnvironmentVariable unset(kName, nullptr);
  load_kernels_at_once();
  EXPECT_NO_THROW(require_kernels_at_once());
}

TEST(KernelsAtOnce, AreRefusedByTheEnvironment) {
  const test::EnvironmentVariable lazy(kName, "LAZY");
  load_kernels_at_once();
  EXPECT_NE(refusal().find("CUDA_MODULE_LOADING is LAZY"), std::string::npos);
}

TEST(KernelsAtOnce, AreNotThereWhereCudaBeganBefore) {
  const test::EnvironmentVariable unset(kName, nullptr);
  simt_device::set_started_early(true);
  load_kernels_at_once();
  EXPECT_NE(refusal().find("CUDA was started before"), std::string::npos);
  simt_device::set_started_early(false);
}

}  // namespace
}  // namespace memphis
