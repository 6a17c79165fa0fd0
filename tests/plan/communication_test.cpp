// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/communication.h"

#include <bit>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/plan/training_plan.h"

namespace memphis {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

std::size_t bytes_of(GroupUse use,
                     const RankGroup& ranks,
                     std::int64_t num_channels = 32,
                     std::int64_t index = 0) {
  return nccl_bytes(
      {.name = "x", .use = use, .ranks = ranks, .index = index, .num_channels = num_channels});
}

// By hand: 12 MiB for a peer on the machine and 20 MiB for one elsewhere, a channel.
TEST(NcclBytes, AreThoseOfTheChannelsToEachPeer) {
  EXPECT_EQ(bytes_of(GroupUse::collectives, {.first = 0, .stride = 1, .count = 2}), 32 * 12 * kMiB);
  EXPECT_EQ(bytes_of(GroupUse::collectives, {.first = 8, .stride = 1, .count = 8}),
            32 * 2 * 12 * kMiB)
      << "two neighbours, however many ranks";
  EXPECT_EQ(bytes_of(GroupUse::collectives, {.first = 4, .stride = 1, .count = 8}),
            32 * 2 * 20 * kMiB)
      << "on two machines";
  EXPECT_EQ(bytes_of(GroupUse::numbers, {.first = 0, .stride = 8, .count = 64}, 4),
            4 * 2 * 20 * kMiB);
  EXPECT_EQ(bytes_of(GroupUse::messages, {.first = 3, .stride = 64, .count = 2}, 4), 4 * 20 * kMiB);
  EXPECT_EQ(bytes_of(GroupUse::rows, {.first = 0, .stride = 1, .count = 8}), 32 * 7 * 12 * kMiB)
      << "every other rank";
  // 64 ranks in one round of 8 at a time leave 4 channels a peer; what goes over the network is
  // shared by all, once in each direction.
  EXPECT_EQ(bytes_of(GroupUse::rows, {.first = 0, .stride = 1, .count = 64}, 32, 63),
            4 * 7 * 12 * kMiB + 2 * 32 * 2 * kMiB);
}

Config config_of(std::int64_t num_ranks, const std::vector<std::string>& overrides) {
  return parse_config(
      "model: {preset: grok-1}\nrun: {dir: runs/x, device: cuda}\n"
      "batch: {sequence_length: 8192, micro_batch: 1, global_batch: 64}\n"
      "schedule: {steps: 1}\nmetrics: {sample_every: 0}\n",
      "grok1.yaml",
      overrides,
      Check::text,
      num_ranks);
}

// Kernels of all groups of a rank fit on its GPU at once, and members agree on what each takes.
TEST(PlannedGroups, FitOnAGpuTogether) {
  for (const auto& overrides :
       {std::vector<std::string>{"parallel.tensor=8", "parallel.expert=8"},
        {"parallel.pipeline=4", "parallel.tensor=4", "parallel.expert=8"},
        {"parallel.pipeline=2", "parallel.tensor=2", "parallel.context=4", "parallel.expert=4"},
        {"parallel.pipeline=4",
         "parallel.tensor=16",
         "parallel.schedule=interleaved",
         "parallel.chunks=2"}}) {
    SCOPED_TRACE(overrides.front());
    constexpr std::int64_t kNumRanks = 64;
    const Config config = config_of(kNumRanks, overrides);
    const Mesh mesh(config.parallel, kNumRanks);
    for (const std::int64_t multiprocessors : {kMultiprocessors, std::int64_t{108}}) {
      std::map<std::pair<std::string, std::vector<int>>, std::int64_t> channels_of;
      for (std::int64_t rank = 0; rank < kNumRanks; ++rank) {
        std::int64_t sum = 0;
        for (const PlannedGroup& group :
             planned_groups(config.model, mesh, rank, multiprocessors)) {
          // Of rows NCCL takes the next power of two.
          const auto channels = static_cast<std::uint64_t>(group.num_channels);
          const bool sends_rows = group.use == GroupUse::rows || group.name == "context";
          sum += static_cast<std::int64_t>(sends_rows ? std::bit_ceil(channels) : channels);
          if (group.use == GroupUse::rows || group.use == GroupUse::collectives) {
            EXPECT_GE(group.num_channels, 4) << group.name;
            EXPECT_LE(group.num_channels, 32) << group.name;
          } else {
            EXPECT_EQ(group.num_channels, kFewChannels) << group.name;
          }
          const auto [known, is_new] =
              channels_of.try_emplace({group.name, group.ranks.ranks()}, group.num_channels);
          EXPECT_EQ(known->second, group.num_channels) << group.name << ", rank " << rank;
        }
        EXPECT_LE(sum, multiprocessors) << "rank " << rank;
        EXPECT_GT(sum, multiprocessors / 3) << "rank " << rank;
      }
    }
  }
}

TEST(CommunicationPlan, IsARowOfTheMemoryPlan) {
  const auto plan_of = [](std::int64_t num_ranks, const std::vector<std::string>& overrides) {
    const Config config = config_of(num_ranks, overrides);
    return plan_training(config,
                         DType::bf16,
                         {.device = Device::cuda, .budget_bytes = std::size_t{1} << 50},
                         Mesh(config.parallel, num_ranks),
                         num_ranks - 1);
  };
  const TrainingPlan alone = plan_of(1, {});
  EXPECT_EQ(alone.memory.communication_bytes, 0U);
  EXPECT_EQ(describe(alone.communication), "nothing");

  const TrainingPlan plan =
      plan_of(32, {"parallel.pipeline=2", "parallel.tensor=4", "parallel.expert=8"});
  std::size_t sum = 0;
  for (const CommunicationPlan::Group& each : plan.communication.groups) {
    EXPECT_EQ(each.bytes, nccl_bytes(each.group)) << each.group.name;
    sum += each.bytes;
  }
  EXPECT_EQ(plan.memory.communication_bytes, sum);
  EXPECT_EQ(plan.memory.total_bytes() - plan.memory.allocated_bytes(), sum);
  EXPECT_NE(format_memory_table(plan.memory).find("communication"), std::string::npos);
  // 7 peers, and in a pipeline the two neighbours of a ring as well.
  EXPECT_NE(describe(plan.communication).find("expert_ranks of 8 ranks 3.38 GiB"),
            std::string::npos)
      << describe(plan.communication);
}

}  // namespace
}  // namespace memphis
