// SPDX-License-Identifier: Apache-2.0
//
// Blocks of a cluster that reach each other too early, too late or too often: what the executor says.
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/device/simt/options.h"
#include "tests/kernels/device/cluster_ring.h"

namespace memphis::kernels {
namespace {

using test::ClusterFault;

class ClusterFaults : public testing::Test {
 protected:
  ~ClusterFaults() override { simt::options() = before_; }

  static constexpr std::uint64_t kOrders = 12;  // of blocks and threads

  // What the launch throws; empty if nothing.
  static std::string fault_of(int num_blocks, ClusterFault planted, std::uint64_t seed) {
    simt::options().seed = seed;
    try {
      test::run_cluster_ring(2, num_blocks, planted);
    } catch (const simt::KernelFault& fault) {
      return fault.what();
    }
    return "";
  }
  // In the first order in which it throws.
  static std::string fault_of(int num_blocks, ClusterFault planted) {
    for (std::uint64_t seed = 0; seed < kOrders; ++seed) {
      std::string message = fault_of(num_blocks, planted, seed);
      if (!message.empty()) {
        return message;
      }
    }
    return "";
  }

 private:
  simt::Options before_ = simt::options();
};

TEST_F(ClusterFaults, AreReported) {
  const std::vector<std::pair<ClusterFault, std::string>> cases = {
      {ClusterFault::no_barrier_after_init, "uses an mbarrier of another block"},
      {ClusterFault::no_fence_after_init, "of another block that the async proxy does not see yet"},
      // A race, or bytes and arrivals that come in the wrong phase: as the order has it.
      {ClusterFault::refills_early, "cluster_ring.h:"},
      {ClusterFault::arrives_twice, "cluster_ring.h:"},
      {ClusterFault::leaves_early, "of its cluster"},
      {ClusterFault::names_a_rank_too_many, "names a block that its cluster has not"},
      {ClusterFault::forgets_a_block, "no thread can go on"},
  };
  for (const auto& [planted, text] : cases) {
    for (const int num_blocks : {2, 4}) {
      const std::string message = fault_of(num_blocks, planted);
      EXPECT_NE(message.find(text), std::string::npos)
          << num_blocks << " blocks: \"" << message << "\" lacks \"" << text << "\"";
      EXPECT_NE(message.find("kernel test::cluster_ring_kernel, block "), std::string::npos)
          << message;
    }
  }
}

// Also where the other block is done with it by the time that it leaves, which it cannot know.
TEST_F(ClusterFaults, ABlockThatLeavesEarlyIsReportedInEveryOrder) {
  for (std::uint64_t seed = 0; seed < kOrders; ++seed) {
    EXPECT_NE(fault_of(2, ClusterFault::leaves_early, seed), "") << seed;
  }
}

TEST_F(ClusterFaults, AreNoneInAnyOrderWhereThereAreNone) {
  for (const int num_blocks : {1, 2, 4, 8}) {
    EXPECT_EQ(fault_of(num_blocks, ClusterFault::none), "") << num_blocks;
  }
}

__global__ void static_kernel(float* out) {
  __shared__ float tile[32];
  tile[threadIdx.x] = 1.0F;
  gpu::cluster_sync();
  out[threadIdx.x] = tile[31 - threadIdx.x];
}

// Variables of two blocks that take turns on one thread of the machine would be one.
TEST_F(ClusterFaults, StaticSharedMemoryIsRefused) {
  const test::DeviceArray<float> out(32, 0.0F);
  EXPECT_THROW(launch(static_kernel,
                      {.grid = {.x = 2}, .block = {.x = 32}, .cluster = 2, .stream = {}},
                      out.data()),
               ContractError);
}

}  // namespace
}  // namespace memphis::kernels
