// SPDX-License-Identifier: Apache-2.0
#include "kernels/matmul/cublas_lt.h"

#include <cstddef>
#include <string>

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "csrc/core/error.h"

namespace memphis::kernels::cuda {
namespace {

// It is there after the first that asks for it, and no earlier.
TEST(CublasLt, IsOpenedWhenItIsAskedFor) {
  const std::string file = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  EXPECT_EQ(::dlopen(file.c_str(), RTLD_NOLOAD | RTLD_LAZY), nullptr)
      << "programs that multiply nothing have to load it";
  try {
    const std::size_t version = cublas_lt().version();
    EXPECT_EQ(version / 10000, CUBLAS_VER_MAJOR);
  } catch (const PreflightError& error) {
    GTEST_SKIP() << error.what();
  }
  EXPECT_STRNE(cublas_lt().status_string(CUBLAS_STATUS_INVALID_VALUE),
               cublas_lt().status_string(CUBLAS_STATUS_SUCCESS));
}

}  // namespace
}  // namespace memphis::kernels::cuda
