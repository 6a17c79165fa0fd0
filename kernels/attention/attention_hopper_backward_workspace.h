// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <gpu_memory.h>

#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/attention_hopper_backward.h"
#include "kernels/attention/attention_hopper_tile.h"

// What the passes of Hopper's backward kernel hand on to each other in global memory.
namespace memphis::kernels::cuda {

constexpr int kQueries = HopperBackwardPlan::kQueries;
constexpr int kKeys = HopperBackwardPlan::kKeys;
constexpr int kConsumers = 2;
constexpr int kConsumerKeys = kKeys / kConsumers;

// Elements of a tile of scores that a thread has, and of its keys' gradients.
constexpr int kScoresOfThread = kConsumerKeys * kQueries / kWarpgroup;
constexpr int kSumsOfThread = kConsumerKeys * kHopperWidth / kWarpgroup;
// A tile of dq is summed in the order of accumulators: bulk reductions need no other, and threads
// write and read 16 bytes side by side.
constexpr int kTileOfQueries = kQueries * kHopperWidth;
constexpr int kConsumerPart = kTileOfQueries / kConsumers;
using Quad = gpu::Vector<float>;

// Of a tile of queries of one head. A query's probability is 2^(factor * v + offset), see
// LogitFactors, and its score's gradient (p v') (slope * dp + shift); two neighbours side by side,
// as a thread has them. offset is -inf where there is no query, or it sees no key.
struct alignas(16) QueryRows {
  struct Pair {
    float factor;
    float offset;
  };
  struct GradientPair {
    float slope;
    float shift;
  };
  Pair logit[kQueries];
  GradientPair gradient[kQueries];
  int first_key[kQueries];
  float exponent;  // with a cap v = 1 / (2^(exponent * q.k) + 1), see Bend
};

// The tiles of queries that see any of a tile of keys, and from which query on they see all of it.
struct alignas(16) KeyTile {
  int first_tile;
  int num_tiles;
  int all_query;
};
// What a tile of queries sees: tiles of keys, none if the last is before the first, and the oldest
// key that all of its queries see, but for newer ones.
struct alignas(16) Seen {
  int first_tile;
  int last_tile;
  int oldest_key;
};

// Places in the workspace.
struct Workspace {
  float* dquery;      // [B, N, tiles of queries, kTileOfQueries]
  float* sums;        // [B, G, tiles of keys, kConsumers, 2 kSumsOfThread kWarpgroup], of dk and dv
  QueryRows* rows;    // [B, N, tiles of queries]
  KeyTile* key_tile;  // [B, tiles of keys]
  Seen* seen;         // [B, tiles of queries]
  int* first_query;   // [B, tiles of keys, kKeys]: that sees a key
  int* query_turn;    // [B, N, tiles of queries]: how many tiles of keys have added to dq
  int* key_turn;      // [B, G, tiles of keys, kConsumers]: how many slices to dk and dv
  int* ticket;
  std::size_t bytes;

  Workspace(const AttentionShape& shape, const HopperBackwardPlan& plan, void* data) {
    auto* next = static_cast<std::byte*>(data);
    const auto take = [&](auto*& piece, std::int64_t count) {
      using T = std::remove_reference_t<decltype(*piece)>;
      piece = reinterpret_cast<T*>(next);
      next += ceil_div(count * static_cast<std::int64_t>(sizeof(T)), 16) * 16;
    };
    const std::int64_t query_tiles = shape.B * plan.num_query_tiles;
    const std::int64_t key_tiles = shape.B * plan.num_key_tiles;
    take(dquery, query_tiles * shape.N * kTileOfQueries);
    take(sums,
         plan.num_slices == 1 ? 0
                              : key_tiles * shape.G * kConsumers * 2 * kSumsOfThread * kWarpgroup);
    take(rows, query_tiles * shape.N);
    take(key_tile, key_tiles);
    take(seen, query_tiles);
    take(first_query, key_tiles * kKeys);
    take(query_turn, query_tiles * shape.N);
    take(key_turn, key_tiles * shape.G * kConsumers);
    take(ticket, 1);
    bytes = static_cast<std::size_t>(next - static_cast<std::byte*>(data));
  }
};

struct BackwardArguments {
  AttentionArguments<bf16> attention;
  HopperBackwardPlan plan;
  Workspace workspace;
};

// Around the main kernel: the statistics of rows and tiles that it finds computed, with all turns
// and the ticket at 0, and dq from its sums.
void launch_attention_backward_prepare(const BackwardArguments& arguments, Stream stream);
void launch_attention_backward_write(const BackwardArguments& arguments, Stream stream);

}  // namespace memphis::kernels::cuda
