// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention_hopper.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/device.h"
#include "csrc/plan/activations.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_hopper_backward.h"

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

// Each tile of keys is there once, and knows how many of those that a tile of queries sees as well
// come before it: what it waits for are lower tickets.
TEST(HopperKeyTiles, KnowTheirPlaceInTheOrder) {
  for (const int num_tiles : {1, 2, 5, 64}) {
    for (const int band : {1, 2, 3, 16, 64}) {
      SCOPED_TRACE(std::to_string(num_tiles) + " tiles in bands of " + std::to_string(band));
      std::vector<int> order;
      for (int position = 0; position < num_tiles; ++position) {
        order.push_back(hopper_key_tile(position, band, num_tiles));
      }
      std::vector<int> sorted = order;
      std::sort(sorted.begin(), sorted.end());
      for (int tile = 0; tile < num_tiles; ++tile) {
        ASSERT_EQ(sorted[static_cast<std::size_t>(tile)], tile);
      }
      for (int first = 0; first < num_tiles; ++first) {
        for (int last = first; last < num_tiles; ++last) {
          int before = 0;
          for (const int tile : order) {
            if (tile >= first && tile <= last) {
              ASSERT_EQ(hopper_key_tiles_before(tile, first, last, band), before)
                  << "tile " << tile << " of " << first << " to " << last;
              ++before;
            }
          }
        }
      }
    }
  }
}

// Tiles of queries that see a tile of keys, of a causal sequence.
int steps_of(const AttentionShape& shape, const HopperBackwardPlan& plan, int key_tile) {
  const auto keys = static_cast<int>(HopperBackwardPlan::kKeys);
  const auto queries = static_cast<int>(HopperBackwardPlan::kQueries);
  return static_cast<int>(shape.group()) * (plan.num_query_tiles - key_tile * keys / queries);
}

// With few key/value heads too, blocks that take the items in their order end together.
TEST(HopperBackwardPlan, FillsTheGpu) {
  constexpr int kBlocks = 132;
  for (const auto& [N, G] : {std::pair{48, 8}, {12, 2}, {6, 1}, {8, 8}, {2, 1}}) {
    for (const std::int64_t S : {4096, 8192, 32768}) {
      const AttentionShape shape = {.B = 1, .S = S, .num_keys = S, .N = N, .G = G, .H = 128};
      const HopperBackwardPlan plan = hopper_backward_plan(shape);
      const int heads_and_slices = G * plan.num_slices;
      std::vector<std::int64_t> ends(kBlocks, 0);
      std::int64_t sum = 0;
      for (int item = 0; item < plan.num_items; ++item) {
        const int tile = hopper_key_tile(item / heads_and_slices, plan.band, plan.num_key_tiles);
        const int slice = item / G % plan.num_slices;
        const int steps = steps_of(shape, plan, tile);
        const int own = steps * (slice + 1) / plan.num_slices - steps * slice / plan.num_slices;
        *std::min_element(ends.begin(), ends.end()) += own;
        sum += own;
      }
      EXPECT_LE(static_cast<double>(*std::max_element(ends.begin(), ends.end())),
                1.1 * static_cast<double>(sum) / kBlocks)
          << N << " heads over " << G << ", " << S << " tokens, " << plan.num_slices << " slices";
    }
  }
}

TEST(HopperBackwardPlan, CutsNothingThatIsShort) {
  const auto slices = [](std::int64_t S, std::int64_t N, std::int64_t G) {
    return hopper_backward_plan({.B = 1, .S = S, .num_keys = S, .N = N, .G = G, .H = 128})
        .num_slices;
  };
  EXPECT_EQ(slices(1, 1, 1), 1);
  EXPECT_EQ(slices(128, 6, 1), 1);
  EXPECT_EQ(slices(300, 6, 1), 3);
  EXPECT_EQ(slices(8192, 48, 8), 2);
  EXPECT_EQ(slices(16384, 48, 8), 1);
}

// The plan is made where no such kernel need be, so it has the sum a second time.
TEST(HopperBackward, TakesTheScratchThatThePlanHasForIt) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  ModelConfig model;
  model.head_dim = 128;
  for (const std::int64_t S : {1, 63, 64, 65, 128, 129, 1000, 8192}) {
    for (const std::int64_t B : {1, 3}) {
      for (const auto& [N, G] : {std::pair{1, 1}, {6, 1}, {12, 2}, {8, 8}, {48, 8}}) {
        model.num_heads = N;
        model.num_kv_heads = G;
        const Dims dims = make_dims(model, B, S);
        const TensorView qkv(nullptr, {B * S, dims.local_C, 128}, DType::bf16, Device::cuda);
        const TensorView lse(nullptr, {B, N, S}, DType::f32, Device::cuda);
        AttentionBackward op;
        op.q_TNH = {qkv, 0, N};
        op.k_UGH = {qkv, N, G};
        op.v_UGH = {qkv, N + G, G};
        op.lse_BNS = lse;
        const std::size_t bytes = attention_backward_workspace_bytes(op, Device::cuda);
        EXPECT_TRUE(bytes == 0 || bytes == attention_workspace_bytes(dims, DType::bf16))
            << bytes << " and " << attention_workspace_bytes(dims, DType::bf16) << " bytes for B "
            << B << ", S " << S << ", N " << N << ", G " << G;
        // Some GPUs lack the kernel.
        EXPECT_TRUE(bytes > 0 || device_info(Device::cuda).compute_capability != 90);
      }
    }
  }
}

}  // namespace
}  // namespace memphis::kernels
