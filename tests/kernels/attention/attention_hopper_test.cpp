// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_hopper.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <gtest/gtest.h>

namespace memphis::kernels {
namespace {

// What each block takes of `num_items`, in order.
std::vector<std::vector<int>> items_of_blocks(int num_items, int num_blocks) {
  std::vector<std::vector<int>> result(static_cast<std::size_t>(num_blocks));
  for (int block = 0; block < num_blocks; ++block) {
    for (int round = 0;; ++round) {
      const int item = hopper_item(round, block, num_blocks);
      if (item >= num_items) {
        break;
      }
      result[static_cast<std::size_t>(block)].push_back(item);
    }
  }
  return result;
}

TEST(HopperItems, EachIsTakenOnceAndInOrder) {
  for (const int num_blocks : {1, 2, 3, 132}) {
    for (const int num_items : {1, 2, 3, 131, 132, 133, 263, 264, 265, 3072}) {
      std::vector<int> taken(static_cast<std::size_t>(num_items), 0);
      for (const std::vector<int>& items : items_of_blocks(num_items, num_blocks)) {
        EXPECT_TRUE(std::is_sorted(items.begin(), items.end()));
        for (const int item : items) {
          ++taken[static_cast<std::size_t>(item)];
        }
      }
      EXPECT_EQ(taken, std::vector<int>(static_cast<std::size_t>(num_items), 1))
          << num_items << " items, " << num_blocks << " blocks";
    }
  }
}

// Causal tiles, longest first: no block has more than the longest item above any other's share.
TEST(HopperItems, AreSharedOutEvenly) {
  constexpr int kBlocks = 132;
  constexpr int kTiles = 64;
  for (const int heads : {6, 12, 48}) {
    int most = 0;
    int least = kTiles * kTiles * heads;
    for (const std::vector<int>& items : items_of_blocks(kTiles * heads, kBlocks)) {
      int sum = 0;
      for (const int item : items) {
        sum += kTiles - item / heads;
      }
      most = std::max(most, sum);
      least = std::min(least, sum);
    }
    EXPECT_LE(most - least, kTiles) << heads << " heads";
  }
}

// Whatever offset is taken from the range, nothing is subnormal and sums are finite.
TEST(HopperOffsets, KeepProbabilitiesWithinF32) {
  for (const float log2_S : {0.0F, 7.0F, 13.0F, 20.0F}) {
    for (float c = 1.0F; hopper_lowest_offset(c, log2_S) <= hopper_highest_offset(c); c *= 1.1F) {
      for (const float offset : {hopper_lowest_offset(c, log2_S), hopper_highest_offset(c)}) {
        EXPECT_GE(std::exp2(-c - offset), 0x1p-126F) << "c " << c;
        EXPECT_LE(std::exp2(c - offset + log2_S + 16.0F), 0x1p126F * 1.01F) << "c " << c;
      }
    }
  }
}

// Grok's cap has one at every length, a temperature of 2 included.
TEST(HopperOffsets, ExistForTheCapsInUse) {
  const auto exists = [](float cap, float temperature, float S) {
    const float c = cap * temperature / std::log(2.0F);
    return hopper_lowest_offset(c, std::log2(S)) <= hopper_highest_offset(c);
  };
  EXPECT_TRUE(exists(30.0F, 1.0F, 8192.0F));
  EXPECT_TRUE(exists(50.0F, 1.0F, 131072.0F));
  EXPECT_TRUE(exists(30.0F, 2.0F, 1048576.0F));
  EXPECT_FALSE(exists(90.0F, 1.0F, 128.0F));
}

}  // namespace
}  // namespace memphis::kernels
