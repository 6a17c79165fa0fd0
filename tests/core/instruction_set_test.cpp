// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/instruction_set.h"

#include <string>

#include <gtest/gtest.h>

namespace memphis {
namespace {

// What the compiler takes this processor for, where it compiles for it.
TEST(InstructionSet, IsTheWidestThatTheProgramIsCompiledFor) {
  if (std::string(MEMPHIS_CPU_ARCH) != "native") {
    GTEST_SKIP() << "compiled for " << MEMPHIS_CPU_ARCH << ", not for this processor";
  }
  __builtin_cpu_init();
  std::string expected = __builtin_cpu_supports("avx512f") != 0 ? "avx512f"
                         : __builtin_cpu_supports("avx2") != 0  ? "avx2"
                         : __builtin_cpu_supports("avx") != 0   ? "avx"
                                                                : "sse2";
  if (__builtin_cpu_supports("fma") != 0) {
    expected += ", fma";
  }
  EXPECT_EQ(instruction_set(), expected);
}

}  // namespace
}  // namespace memphis
