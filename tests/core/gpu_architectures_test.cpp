// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/gpu_architectures.h"

#include <string>

#include <gtest/gtest.h>

#include "tests/support/error_text.h"

namespace memphis {
namespace {

bool runs(const char* architectures, int compute_capability) {
  return no_kernels_reason(architectures, "a GPU", compute_capability).empty();
}

TEST(GpuArchitectures, OfOneFeatureSetRunOnThatGpuAlone) {
  EXPECT_TRUE(runs("90a", 90));
  EXPECT_FALSE(runs("90a", 80));
  EXPECT_FALSE(runs("90a", 100));
  EXPECT_FALSE(runs("90a-virtual", 100));
  EXPECT_TRUE(runs("100f", 103));
  EXPECT_FALSE(runs("100f", 120));
}

TEST(GpuArchitectures, HaveCodeForTheirGenerationAndPtxForLaterOnes) {
  EXPECT_TRUE(runs("80", 80));
  EXPECT_TRUE(runs("80", 90));
  EXPECT_FALSE(runs("80", 75));
  EXPECT_TRUE(runs("80-real", 89));
  EXPECT_FALSE(runs("80-real", 90));
  EXPECT_FALSE(runs("86-real", 80));
  EXPECT_TRUE(runs("80-virtual", 120));
}

TEST(GpuArchitectures, AreAsGoodAsTheBestOfThem) {
  EXPECT_TRUE(runs("80-real,90a", 86));
  EXPECT_TRUE(runs("80-real;90a", 90));
  EXPECT_FALSE(runs("80-real,90a", 100));
}

TEST(GpuArchitectures, MayNotSayWhatTheyAre) {
  EXPECT_TRUE(runs("native", 90));
  EXPECT_TRUE(runs("all-major", 90));
  EXPECT_TRUE(runs("", 90));
}

TEST(GpuArchitectures, AreNamedWithTheGpuAndTheWayOut) {
  std::string text = no_kernels_reason("90a", "NVIDIA A100-SXM4-80GB", 80);
  EXPECT_TRUE(test::follows_grammar(text)) << text;
  EXPECT_EQ(
      text,
      "the GPU, NVIDIA A100-SXM4-80GB, has compute capability 8.0 (this program's kernels are "
      "compiled for 90a); build with `launch/build.sh cuda -DCMAKE_CUDA_ARCHITECTURES=80`");
  text = no_kernels_reason("80-real", "NVIDIA H100", 90);
  EXPECT_NE(text.find("=90a`"), std::string::npos) << text;
  text = no_kernels_reason("80", "Tesla V100", 70);
  EXPECT_TRUE(test::follows_grammar(text)) << text;
  EXPECT_NE(text.find("use a GPU of compute capability 8.0"), std::string::npos) << text;
}

}  // namespace
}  // namespace memphis
