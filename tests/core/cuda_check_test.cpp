// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/cuda_check.h"

#include <string>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

template <class Expected>
std::string text_of(cudaError_t status) {
  const std::string text = test::error_text<Expected>([&] { cuda_check(status, "aCall()"); });
  EXPECT_NE(text.find(cudaGetErrorName(status)), std::string::npos) << text;
  EXPECT_NE(text.find("aCall()"), std::string::npos) << text;
  EXPECT_TRUE(test::follows_grammar(text)) << text;
  return text;
}

TEST(CudaCheck, SaysForWhichGpusKernelsAreCompiledWhereNoneRuns) {
  const std::string text = text_of<PreflightError>(cudaErrorNoKernelImageForDevice);
  EXPECT_NE(text.find("kernels are compiled for "), std::string::npos) << text;
}

// With several ranks it can hang.
TEST(CudaCheck, AsksForBlockingLaunchesOfOneRankAloneAndOnlyWhereAKernelFailed) {
  const std::string text = text_of<Error>(cudaErrorIllegalAddress);
  EXPECT_NE(text.find("one rank with CUDA_LAUNCH_BLOCKING=1"), std::string::npos) << text;
  for (const cudaError_t other : {cudaErrorInvalidValue, cudaErrorStreamCaptureUnsupported}) {
    EXPECT_EQ(text_of<Error>(other).find("LAUNCH_BLOCKING"), std::string::npos);
  }
}

}  // namespace
}  // namespace memphis
