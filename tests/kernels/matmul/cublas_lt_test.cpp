// SPDX-License-Identifier: Apache-2.0
#include "kernels/matmul/cublas_lt.h"

#include <string>

#include <dlfcn.h>
#include <gtest/gtest.h>

namespace memphis::kernels::cuda {
namespace {

bool is_loaded() {
  const std::string file = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  return ::dlopen(file.c_str(), RTLD_NOLOAD | RTLD_LAZY) != nullptr;
}

const bool g_loaded_at_start = is_loaded();

// A machine that compiles for GPUs has it: its header was there.
TEST(CublasLt, IsOpenedWhenItIsAskedFor) {
  EXPECT_FALSE(g_loaded_at_start) << "programs that multiply nothing have to load it";
  EXPECT_EQ(cublas_lt().version() / 10000, CUBLAS_VER_MAJOR);
  EXPECT_TRUE(is_loaded());
  EXPECT_STRNE(cublas_lt().status_string(CUBLAS_STATUS_INVALID_VALUE),
               cublas_lt().status_string(CUBLAS_STATUS_SUCCESS));
}

}  // namespace
}  // namespace memphis::kernels::cuda
