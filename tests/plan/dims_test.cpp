// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/dims.h"

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace memphis {
namespace {

ModelConfig model_of(std::int64_t vocab_size) {
  ModelConfig model;
  model.vocab_size = vocab_size;
  model.num_layers = 1;
  model.d_model = 8;
  model.num_heads = 12;
  model.num_kv_heads = 3;
  model.head_dim = 2;
  model.ffn_dim = 16;
  model.num_experts = 12;
  model.experts_per_token = 3;
  return model;
}

Share experts_of(std::int64_t expert, std::int64_t expert_tensor, double buffer) {
  Share share;
  share.expert = {.index = 0, .count = expert};
  share.expert_tensor = {.index = 0, .count = expert_tensor};
  share.expert_buffer = buffer;
  return share;
}

// A token goes to an expert at most once, and with each copy of it to one rank.
TEST(Dims, HaveRoomForTheWorstCaseOfRouting) {
  const ModelConfig model = model_of(64);
  const auto room = [&](std::int64_t expert, std::int64_t expert_tensor, double buffer) {
    return make_dims(model, 5, 7, experts_of(expert, expert_tensor, buffer)).local_R;
  };
  EXPECT_EQ(room(1, 1, 0), 5 * 7 * 3);
  EXPECT_EQ(room(4, 1, 0), 4 * 5 * 7 * 3) << "each of 4 ranks sends all choices of its tokens";
  EXPECT_EQ(room(6, 1, 0), 6 * 5 * 7 * 2) << "two experts of a rank take two choices of a token";
  EXPECT_EQ(room(12, 1, 0), 12 * 5 * 7);
  EXPECT_EQ(room(6, 2, 0), 12 * 5 * 7 * 2) << "ranks that share experts send to each other too";
}

// `expert_buffer` even shares, rounded up, and never more than can come.
TEST(Dims, HaveRoomForAsManyEvenSharesAsAreAskedFor) {
  const ModelConfig model = model_of(64);
  const auto room = [&](std::int64_t expert, std::int64_t expert_tensor, double buffer) {
    return make_dims(model, 5, 7, experts_of(expert, expert_tensor, buffer)).local_R;
  };
  EXPECT_EQ(room(4, 1, 1.0), 5 * 7 * 3);
  EXPECT_EQ(room(4, 1, 1.5), 158) << "157.5 rows";
  EXPECT_EQ(room(4, 2, 1.0), 2 * 5 * 7 * 3);
  EXPECT_EQ(room(4, 1, 100.0), 4 * 5 * 7 * 3);
}

// Numbered as the ranks are: pieces 0 .. copies-1 of the experts of one rank's share, one after the
// other.
TEST(Dims, KnowWhichExpertAPieceIsOf) {
  const Dims d = make_dims(model_of(64), 1, 4, experts_of(3, 2, 0));
  ASSERT_EQ(d.local_E, 4);
  std::vector<std::int64_t> experts;
  for (std::int64_t i = 0; i < d.E * d.expert_pieces; ++i) {
    experts.push_back(d.expert_of(i));
  }
  EXPECT_EQ(experts, (std::vector<std::int64_t>{0, 1, 2, 3, 0, 1, 2,  3,  4, 5, 6,  7,
                                                4, 5, 6, 7, 8, 9, 10, 11, 8, 9, 10, 11}));
}

// Chunks of the head: whole multiples of eight rows, which begin aligned in any dtype, of at most
// 2^27 logits and of at least eight rows.
TEST(Dims, CutTheHeadIntoAlignedChunks) {
  constexpr std::int64_t kLogits = std::int64_t{1} << 27;
  for (const std::int64_t vocab_size : {259, 1000, 50257, 131072, 200019, 1 << 24, 1 << 28}) {
    const Dims d = make_dims(model_of(vocab_size), 1 << 10, 1 << 10);
    EXPECT_EQ(d.head_chunk % 8, 0) << vocab_size;
    EXPECT_GE(d.head_chunk, 8) << vocab_size;
    EXPECT_TRUE(d.head_chunk == 8 || d.head_chunk * vocab_size <= kLogits) << vocab_size;
    EXPECT_GT((d.head_chunk + 8) * vocab_size, kLogits) << vocab_size;
  }
  EXPECT_EQ(make_dims(model_of(131072), 8, 1024).head_chunk, 1024);
  EXPECT_EQ(make_dims(model_of(259), 1, 5).head_chunk, 5) << "all of a batch that is smaller";
}

TEST(Dims, RoundAChunkUpToWholeMultiples) {
  const Dims d = make_dims(model_of(64), 1, 4);
  EXPECT_EQ(d.pad_chunk(1), 8);
  EXPECT_EQ(d.pad_chunk(8), 8);
  EXPECT_EQ(d.pad_chunk(9), 16);
}

// More ranks than key/value heads: neighbours share one, and each finds the others that do.
TEST(Dims, ShareAKeyValueHeadAmongNeighbours) {
  const ModelConfig model = model_of(64);
  const Mesh mesh({.data = 2, .tensor = 12}, 24);
  for (std::int64_t rank = 0; rank < 24; ++rank) {
    Share share;
    share.tensor = {.index = rank % 12, .count = 12};
    const KvShare kv = kv_share(model, share);
    EXPECT_EQ(kv.heads, (Range{.begin = rank % 12 / 4, .count = 1}));
    const RankGroup sharers = kv_sharer_ranks(model, mesh, rank);
    EXPECT_EQ(sharers.count, 4);
    EXPECT_EQ(sharers.first, rank / 4 * 4);
    EXPECT_EQ(sharers.ranks().at(static_cast<std::size_t>(kv.sharers.index)), rank);
  }
}

// What a degree does not divide is cut into pieces that differ by one at most and leave nothing
// out.
TEST(Piece, OfAnyNumberMakeUpTheWhole) {
  for (const std::int64_t count : {1, 2, 3, 7}) {
    for (const std::int64_t n : {0, 1, 5, 7, 100}) {
      std::int64_t end = 0;
      for (std::int64_t index = 0; index < count; ++index) {
        const Range range = Piece{.index = index, .count = count}.of(n);
        EXPECT_EQ(range.begin, end);
        EXPECT_TRUE(range.count == n / count || range.count == n / count + 1);
        end += range.count;
      }
      EXPECT_EQ(end, n);
    }
  }
}

}  // namespace
}  // namespace memphis
