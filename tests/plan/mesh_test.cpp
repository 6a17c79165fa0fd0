// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/mesh.h"

#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/plan/share.h"

namespace memphis {
namespace {

constexpr Axis kAxes[] = {Axis::pipeline,
                          Axis::data,
                          Axis::context,
                          Axis::tensor,
                          Axis::expert_data,
                          Axis::expert,
                          Axis::expert_tensor,
                          Axis::data_context,
                          Axis::stage_ranks,
                          Axis::expert_ranks,
                          Axis::world};

struct Folded {
  ParallelConfig parallel;
  std::int64_t num_ranks;
};

// Every way to fold up to 24 ranks, and some larger ones.
std::vector<Folded> foldings() {
  std::vector<Folded> result;
  for (std::int64_t pipeline : {1, 2}) {
    for (std::int64_t data : {1, 2, 3}) {
      for (std::int64_t context : {1, 2}) {
        for (std::int64_t tensor : {1, 2, 4}) {
          const std::int64_t stage = data * context * tensor;
          for (std::int64_t expert = 1; expert <= stage; ++expert) {
            for (std::int64_t expert_tensor = 1; expert * expert_tensor <= stage; ++expert_tensor) {
              if (stage % (expert * expert_tensor) == 0) {
                result.push_back({{.pipeline = pipeline,
                                   .data = data,
                                   .context = context,
                                   .expert = expert,
                                   .tensor = tensor,
                                   .expert_tensor = expert_tensor},
                                  pipeline * stage});
              }
            }
          }
        }
      }
    }
  }
  return result;
}

TEST(Mesh, GroupsPartitionTheRanks) {
  for (const Folded& folded : foldings()) {
    const Mesh mesh(folded.parallel, folded.num_ranks);
    for (const Axis axis : kAxes) {
      std::set<int> seen;
      for (std::int64_t rank = 0; rank < folded.num_ranks; ++rank) {
        const RankGroup group = mesh.group(axis, rank);
        const std::vector<int> ranks = group.ranks();
        ASSERT_EQ(group.count, mesh.degree(axis));
        ASSERT_EQ(ranks.at(static_cast<std::size_t>(mesh.index(axis, rank))), rank);
        if (group.first == rank) {  // once for each group
          for (const int member : ranks) {
            ASSERT_TRUE(seen.insert(member).second) << name_of(axis);
            ASSERT_EQ(mesh.group(axis, member).first, rank);
          }
        }
      }
      EXPECT_EQ(seen.size(), static_cast<std::size_t>(folded.num_ranks)) << name_of(axis);
    }
  }
}

TEST(Mesh, BothFoldsMakeUpTheRank) {
  for (const Folded& folded : foldings()) {
    const ParallelConfig& p = folded.parallel;
    const Mesh mesh(p, folded.num_ranks);
    const std::int64_t expert_data = mesh.degree(Axis::expert_data);
    for (std::int64_t rank = 0; rank < folded.num_ranks; ++rank) {
      const Coordinates at = mesh.coordinates(rank);
      EXPECT_EQ(((at.pipeline * p.data + at.data) * p.context + at.context) * p.tensor + at.tensor,
                rank);
      EXPECT_EQ(
          ((at.pipeline * expert_data + at.expert_data) * p.expert + at.expert) * p.expert_tensor +
              at.expert_tensor,
          rank);
    }
  }
}

TEST(Mesh, WhoTalksMostIsANeighbour) {
  for (const Folded& folded : foldings()) {
    const Mesh mesh(folded.parallel, folded.num_ranks);
    for (const Axis axis :
         {Axis::tensor, Axis::expert_tensor, Axis::expert_ranks, Axis::stage_ranks, Axis::world}) {
      EXPECT_EQ(mesh.group(axis, 0).stride, 1) << name_of(axis);
    }
  }
}

TEST(Mesh, RefusesWhatDoesNotFold) {
  EXPECT_THROW(Mesh({.data = 2, .tensor = 2}, 8), ContractError);
  EXPECT_THROW(Mesh({.data = 2, .expert = 4, .tensor = 1}, 2), ContractError);
}

// The control plane of a large job: a mesh and what each rank holds cost a few numbers, whatever
// the number of ranks. Were anything in it a table over the ranks, this test would not end.
TEST(Mesh, OfAHundredThousandRanksIsAFewNumbers) {
  static_assert(sizeof(Mesh) <= 160);
  const ParallelConfig parallel{.data = 12'500, .expert = 8, .tensor = 8, .expert_tensor = 1};
  constexpr std::int64_t kNumRanks = 100'000;
  const Mesh mesh(parallel, kNumRanks);
  std::int64_t optimizer_elements = 0;
  for (std::int64_t rank = 0; rank < kNumRanks; ++rank) {
    const Share share = make_share({}, parallel, mesh, rank);
    optimizer_elements += share.stage_ranks.of(12'800'000).count;
    for (const Axis axis : kAxes) {
      const RankGroup group = mesh.group(axis, rank);
      ASSERT_GE(rank, group.first);
      ASSERT_LE(rank, group.first + (group.count - 1) * group.stride);
    }
  }
  EXPECT_EQ(optimizer_elements, 12'800'000);
}

TEST(SampleShare, TakesEachSampleOnceInMicroBatches) {
  const BatchConfig batch{.sequence_length = 8, .micro_batch = 3, .global_batch = 24};
  std::vector<std::vector<std::int64_t>> by_micro_batch(2);
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    // Ranks along `context` take the same samples.
    const SampleShare share(batch,
                            {.data = {.index = rank, .count = 4},
                             .context = {.index = rank % 2, .count = 2},
                             .data_context = {.index = 2 * rank + rank % 2, .count = 8}});
    ASSERT_EQ(share.num_sequences(), 6);
    for (std::int64_t i = 0; i < share.num_sequences(); ++i) {
      by_micro_batch[static_cast<std::size_t>(i / 3)].push_back(share.place(i));
    }
  }
  std::int64_t next = 0;
  for (const std::vector<std::int64_t>& places : by_micro_batch) {
    for (const std::int64_t place : places) {
      EXPECT_EQ(place, next++);
    }
  }
}

}  // namespace
}  // namespace memphis
