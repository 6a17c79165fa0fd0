// SPDX-License-Identifier: Apache-2.0
//
// Blocks of a cluster: their ranks, their barrier, boxes that come to all of them, and arrivals at each
// other's mbarriers.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/kernels/device/cluster_ring.h"

namespace memphis::kernels {
namespace {

using test::DeviceArray;

class Clusters : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = test::no_device_reason(90);
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};

__global__ void rank_kernel(int* ranks) {
  if (threadIdx.x == 0) {
    ranks[blockIdx.y * gridDim.x + blockIdx.x] = gpu::cluster_rank();
  }
}

TEST_F(Clusters, AreNeighboursInX) {
  for (const int size : {1, 2, 4, 8}) {
    const DeviceArray<int> ranks(16, -1);
    launch(rank_kernel,
           {.grid = {.x = 8, .y = 2}, .block = {.x = 32}, .cluster = size, .stream = {}},
           ranks.data());
    std::vector<int> expected;
    for (int i = 0; i < 16; ++i) {
      expected.push_back(i % size);
    }
    EXPECT_EQ(ranks.values(), expected) << size;
  }
}

TEST_F(Clusters, HaveWholeNumbersOfBlocks) {
  const DeviceArray<int> ranks(16, -1);
  const auto launch_clusters = [&](std::int64_t size, std::int64_t blocks) {
    launch(rank_kernel,
           {.grid = {.x = blocks}, .block = {.x = 32}, .cluster = size, .stream = {}},
           ranks.data());
  };
  EXPECT_THROW(launch_clusters(2, 3), ContractError);
  EXPECT_THROW(launch_clusters(16, 16), ContractError);
  EXPECT_THROW(launch_clusters(0, 4), ContractError);
}

TEST_F(Clusters, FillEachOthersStages) {
  constexpr int kClusters = 3;
  for (const int size : {2, 4, 8}) {
    const std::vector<float> values = test::run_cluster_ring(kClusters, size);
    const std::size_t of_block = values.size() / (kClusters * static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < values.size(); ++i) {
      // Rounds and ranks are rows one behind the other, the same in each block.
      ASSERT_EQ(values[i], static_cast<float>(i % of_block)) << size << " blocks, value " << i;
    }
  }
}

}  // namespace
}  // namespace memphis::kernels
