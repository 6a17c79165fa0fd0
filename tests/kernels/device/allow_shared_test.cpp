// SPDX-License-Identifier: Apache-2.0
//
// What launches ask the CUDA runtime for, of which this test has the three functions itself: it
// needs no GPU.
#include <array>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include "kernels/device/cuda/gpu_launch.h"

namespace {

constexpr std::size_t kKiB = 1024;

struct Runtime {
  std::size_t static_bytes = 0;
  int num_questions = 0;
  std::vector<int> set;  // of all kernels, in order
  std::map<std::pair<const void*, int>, int> allowed;
};
Runtime runtime;
thread_local int t_gpu = 0;

}  // namespace

extern "C" cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  *device = t_gpu;
  return cudaSuccess;
}
extern "C" cudaError_t CUDARTAPI cudaFuncGetAttributes(cudaFuncAttributes* attributes,
                                                       const void* kernel) {
  ++runtime.num_questions;
  *attributes = {};
  attributes->sharedSizeBytes = runtime.static_bytes;
  const auto found = runtime.allowed.find({kernel, t_gpu});
  attributes->maxDynamicSharedSizeBytes = found != runtime.allowed.end()
                                              ? found->second
                                              : static_cast<int>(48 * kKiB - runtime.static_bytes);
  return cudaSuccess;
}
extern "C" cudaError_t CUDARTAPI cudaFuncSetAttribute(const void* kernel,
                                                      cudaFuncAttribute /*attribute*/,
                                                      int value) {
  runtime.set.push_back(value);
  runtime.allowed[{kernel, t_gpu}] = value;
  return cudaSuccess;
}

namespace memphis::kernels {
namespace {

// Kernels are their addresses.
class AllowShared : public testing::Test {
 protected:
  AllowShared() { runtime = {}; }
  const void* kernel() const { return &kernels_[0]; }
  const void* other() const { return &kernels_[1]; }
  // As many as there are tests, since what was asked for is kept.
  static const std::array<char, 2>* next() {
    static std::array<std::array<char, 2>, 8> all{};
    static std::size_t used = 0;
    return &all.at(used++);
  }
  const std::array<char, 2>& kernels_ = *next();
};

TEST_F(AllowShared, AsksOnceForAKernel) {
  for (int launch = 0; launch < 3; ++launch) {
    allow_shared(kernel(), 100 * kKiB);
  }
  EXPECT_EQ(runtime.num_questions, 1);
  EXPECT_EQ(runtime.set, std::vector<int>{100 * kKiB});
  allow_shared(other(), 100 * kKiB);
  EXPECT_EQ(runtime.num_questions, 2);
  EXPECT_EQ(runtime.set.size(), 2U);
}

TEST_F(AllowShared, NeverLowersWhatAGraphMayHold) {
  for (const std::size_t kib : {100, 60, 200, 100, 8}) {
    allow_shared(kernel(), kib * kKiB);
  }
  EXPECT_EQ(runtime.set, (std::vector<int>{100 * kKiB, 200 * kKiB}));
}

TEST_F(AllowShared, CountsWhatTheKernelHasByItself) {
  allow_shared(kernel(), 48 * kKiB);
  EXPECT_TRUE(runtime.set.empty());
  runtime.static_bytes = 1 * kKiB;
  allow_shared(other(), 47 * kKiB);
  EXPECT_TRUE(runtime.set.empty());
  allow_shared(other(), 48 * kKiB);
  EXPECT_EQ(runtime.set, std::vector<int>{48 * kKiB});
}

TEST_F(AllowShared, IsOfEachGpuAndOfAllThreads) {
  allow_shared(kernel(), 100 * kKiB);
  std::thread same([&] { allow_shared(kernel(), 100 * kKiB); });
  same.join();
  EXPECT_EQ(runtime.set.size(), 1U);
  std::thread another([&] {
    t_gpu = 1;
    allow_shared(kernel(), 100 * kKiB);
  });
  another.join();
  EXPECT_EQ(runtime.set.size(), 2U);
  EXPECT_EQ((runtime.allowed[{kernel(), 1}]), 100 * kKiB);
}

}  // namespace
}  // namespace memphis::kernels
