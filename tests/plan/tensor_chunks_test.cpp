// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/tensor_chunks.h"

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

ModelConfig model_of(std::int64_t d_model) {
  ModelConfig model;
  model.vocab_size = 64;
  model.num_layers = 1;
  model.d_model = d_model;
  model.num_heads = 8;
  model.num_kv_heads = 8;
  model.head_dim = 8;
  model.ffn_dim = 16;
  model.num_experts = 4;
  model.experts_per_token = 2;
  return model;
}

Dims dims_of(std::int64_t sequences,
             std::int64_t length,
             std::int64_t ranks,
             bool split = true,
             std::int64_t d_model = 64) {
  Share share;
  share.tensor = {.index = 0, .count = ranks};
  share.sequence_parallel = split;
  return make_dims(model_of(d_model), sequences, length, share);
}

constexpr ChunkSizes kSizes = {.least_rows = 512, .least_run_rows = 64, .most_chunks = 8};

struct Cut {
  std::int64_t sequences;
  std::int64_t length;
  std::int64_t ranks;
  TensorChunks chunks;
  std::int64_t count;
};

TEST(TensorChunks, AreAsManyAsProductsOfEnoughRows) {
  const std::vector<Cut> cuts = {
      {16, 256, 2, {.sequences = 2}, 8},              // 4096 rows: eight of 512
      {16, 128, 2, {.sequences = 4}, 4},              // 2048 rows
      {3, 512, 2, {.sequences = 1}, 3},               // as many as sequences
      {5, 256, 2, {.sequences = 3}, 2},               // 1280 rows: two, of three and two
      {64, 256, 2, {.sequences = 8}, 8},              // no more than eight
      {1, 2048, 4, {.sequences = 1, .cuts = 4}, 4},   // parts of 128 rows of each piece
      {2, 2048, 2, {.sequences = 1, .cuts = 4}, 8},   // of each of two sequences
      {3, 1024, 2, {.sequences = 1, .cuts = 2}, 6},   // 6 of 3072 rows
      {1, 2048, 16, {.sequences = 1, .cuts = 2}, 2},  // four would have 32 rows of each piece
      {1, 1024, 64, {.sequences = 1}, 1},             // 16 rows of each piece
      {1, 1000, 2, {.sequences = 1}, 1},              // fewer rows than two chunks have
      {4, 64, 2, {.sequences = 4}, 1},
  };
  for (const Cut& cut : cuts) {
    const Dims dims = dims_of(cut.sequences, cut.length, cut.ranks);
    const TensorChunks chunks = cut_into_chunks(dims, kSizes, false);
    EXPECT_EQ(chunks.sequences, cut.chunks.sequences) << cut.sequences << " of " << cut.length;
    EXPECT_EQ(chunks.cuts, cut.chunks.cuts) << cut.sequences << " of " << cut.length;
    EXPECT_EQ(dims.num_chunks(chunks), cut.count) << cut.sequences << " of " << cut.length;
  }
}

TEST(TensorChunks, AreTwoOfAnySizeWhereTheyHaveTo) {
  const auto chunks_of = [](std::int64_t sequences, std::int64_t length, std::int64_t ranks) {
    const Dims dims = dims_of(sequences, length, ranks);
    return dims.num_chunks(cut_into_chunks(dims, kSizes, true));
  };
  EXPECT_EQ(chunks_of(4, 16, 2), 2);
  EXPECT_EQ(chunks_of(1, 16, 2), 2);
  EXPECT_EQ(chunks_of(1, 12, 4), 3) << "three rows of each piece";
  EXPECT_EQ(chunks_of(1, 4, 4), 1) << "one row";
  EXPECT_EQ(chunks_of(16, 256, 2), 8) << "as many as may be";
}

// Rows of [., 60] begin 16-byte aligned every second time in bf16.
TEST(TensorChunks, BeginAligned) {
  const auto cut = [](std::int64_t sequences, std::int64_t length) {
    return cut_into_chunks(dims_of(sequences, length, 2, true, 60), kSizes, true);
  };
  EXPECT_EQ(cut(4, 6).sequences, 2) << "of three rows of each piece";
  EXPECT_EQ(cut(3, 6).sequences, 2);
  EXPECT_EQ(cut(2, 6).sequences, 2) << "the second would begin between";
  EXPECT_EQ(cut(1, 8).cuts, 2);
  EXPECT_EQ(cut(1, 4).cuts, 1);
  EXPECT_EQ(cut(1, 12).cuts, 3) << "of two rows, where halves have three";
}

// Every token is in one chunk, and in one of its places of the whole.
TEST(TensorChunks, CoverAllTokensOnce) {
  for (const bool split : {true, false}) {
    for (const TensorChunks chunks : {TensorChunks{},
                                      TensorChunks{.sequences = 2},
                                      TensorChunks{.sequences = 1},
                                      TensorChunks{.sequences = 1, .cuts = 4}}) {
      const Dims dims = dims_of(5, 32, 4, split);
      std::multiset<std::int64_t> residual;
      std::multiset<std::int64_t> whole;
      std::multiset<std::int64_t> tokens;
      for (std::int64_t i = 0; i < dims.num_chunks(chunks); ++i) {
        const TokenChunk chunk = dims.chunk_of(chunks, i);
        for (std::int64_t row = 0; row < chunk.residual.count; ++row) {
          residual.insert(chunk.residual.begin + row);
        }
        for (std::int64_t row = 0; row < chunk.whole.count; ++row) {
          whole.insert(chunk.whole.begin + row);
        }
        for (std::int64_t run = 0; run < chunk.num_runs; ++run) {
          for (std::int64_t row = 0; row < chunk.rows_of_run(); ++row) {
            tokens.insert(chunk.tokens.begin + run * chunk.step + row);
          }
          EXPECT_LE(chunk.tokens.begin + run * chunk.step + chunk.rows_of_run(),
                    chunk.tokens.end());
        }
      }
      const auto all = [](std::int64_t count) {
        std::multiset<std::int64_t> rows;
        for (std::int64_t row = 0; row < count; ++row) {
          rows.insert(row);
        }
        return rows;
      };
      EXPECT_EQ(residual, all(dims.residual_T));
      EXPECT_EQ(whole, all(dims.T));
      EXPECT_EQ(tokens, all(dims.T));
    }
  }
}

// A part of a sequence is the same part of each rank's piece, rank behind rank.
TEST(TensorChunks, OfASequenceAreTheSamePartOfEachPiece) {
  const TokenChunk chunk = dims_of(2, 32, 4).chunk_of({.sequences = 1, .cuts = 2}, 3);
  EXPECT_EQ(chunk.num_sequences, 1);
  EXPECT_EQ(chunk.residual, (Range{.begin = 8 + 4, .count = 4}));
  EXPECT_EQ(chunk.whole, (Range{.begin = 48, .count = 16}));
  EXPECT_EQ(chunk.num_runs, 4);
  EXPECT_EQ(chunk.step, 8);
  EXPECT_EQ(chunk.tokens, (Range{.begin = 32 + 4, .count = 28}));
}

Config config_of(OverlapChoice choice, std::int64_t tensor) {
  Config config;
  config.parallel.tensor = tensor;
  config.parallel.overlap_tensor = choice;
  return config;
}

TEST(TensorChunks, AreWhatTheConfigAsksFor) {
  const Dims large = dims_of(16, 1024, 2);
  const auto chunks = [](OverlapChoice choice, const Dims& dims, Device device) {
    return dims.num_chunks(choose_tensor_chunks(config_of(choice, 2), dims, device));
  };
  EXPECT_EQ(chunks(OverlapChoice::never, large, Device::cuda), 1);
  EXPECT_EQ(chunks(OverlapChoice::automatic, large, Device::cuda), 8);
  EXPECT_EQ(chunks(OverlapChoice::automatic, large, Device::cpu), 1);
  EXPECT_FALSE(
      choose_tensor_chunks(config_of(OverlapChoice::automatic, 2), large, Device::cpu).overlap());
  EXPECT_EQ(chunks(OverlapChoice::required, large, Device::cpu), 8);
  const Dims small = dims_of(2, 16, 2);
  EXPECT_EQ(chunks(OverlapChoice::automatic, small, Device::cuda), 1);
  EXPECT_TRUE(
      choose_tensor_chunks(config_of(OverlapChoice::automatic, 2), small, Device::cuda).overlap())
      << "in the backward pass";
  EXPECT_EQ(chunks(OverlapChoice::required, small, Device::cpu), 2);
  EXPECT_FALSE(choose_tensor_chunks(
                   config_of(OverlapChoice::automatic, 1), dims_of(16, 1024, 1), Device::cuda)
                   .overlap());
}

TEST(TensorChunks, AreRefusedWhereTokensCannotBeCut) {
  try {
    const Config config = config_of(OverlapChoice::required, 4);
    Dims dims = dims_of(1, 4, 4);
    dims.tensor_chunks = choose_tensor_chunks(config, dims, Device::cpu);
    require_tensor_chunks(config, dims);
    FAIL() << "one token on each rank";
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()),
              "parallel.overlap_tensor is required and a micro-batch of 1 tokens a rank cannot be "
              "cut in two (each part is to begin at a multiple of 1 of each sequence's 1); raise "
              "batch.micro_batch, or set parallel.overlap_tensor to auto");
  }
}

}  // namespace
}  // namespace memphis
