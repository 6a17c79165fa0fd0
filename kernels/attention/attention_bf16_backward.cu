// SPDX-License-Identifier: Apache-2.0
//
// Two passes, so that nothing is added to from two blocks. dk and dv: a block a tile of 128 keys of
// one key/value head, a warp 16 of them, against the queries of all heads of the group; it forms
// the transposed scores k q^T, so that their accumulators are left operands of dv = p^T dout and dk
// = ds^T q as they stand. dq: a block a tile of 128 queries, a warp 16 of them. Bound by the tensor
// cores and shared memory; seven products for the five that are counted, as both passes form q k^T
// and dout v^T.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_bf16_tile.h"
#include "kernels/attention/attention_gpu.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * gpu::kWarpSize;
constexpr int kOwnRows = kWarps * kWarpRows;  // keys, or queries, that a block writes gradients of
// The other side's tile. 32 and not 64: twice the scores would not leave two widths of accumulators
// in 255 registers.
constexpr int kStreamRows = 32;
constexpr int kStages = 2;

// The first tile of keys is seen by all queries and the last by few: blocks that take turns,
// longest first, end together where there are two for each of the 132 multiprocessors of an H100.
// With fewer tiles of 128 keys than that a block takes a quarter of one. At 6 query heads over one
// of 8192 keys the 64 blocks, of which the longest runs 1536 steps of 32 queries, become 256 of at
// most 384, where 374 would be perfect. Not asked of the device: bits would depend on it.
constexpr std::int64_t kBlocksWanted = 264;
constexpr int kManySplits = 4;

// What the key/value side needs of a query. offset is -inf where there is no query or it sees no
// key: its probabilities are then 0.
struct alignas(16) QueryColumn {
  float factor;  // probability = 2^(factor * v + offset), see LogitFactors
  float offset;
  float delta;
  float slope;
};
struct QueryColumns {
  QueryColumn column[kStreamRows];
  int first_key[kStreamRows];
};

template <bool kCapped>
__device__ __forceinline__ void load_columns(QueryColumns& columns,
                                             const Bend<kCapped>& bend,
                                             const AttentionHead<bf16>& head,
                                             int first) {
  const auto row = static_cast<int>(threadIdx.x);
  if (row >= kStreamRows) {
    return;
  }
  const bool inside = first + row < head.num_tokens();
  const int t = inside ? first + row : head.num_tokens() - 1;
  const float lse = inside ? head.arguments.lse[head.statistic(t)] : -INFINITY;
  const LogitFactors factors = bend.factors(head.temperature(t));
  columns.column[row] = {.factor = factors.factor,
                         .offset = lse == -INFINITY ? -INFINITY : factors.shift - kLog2E * lse,
                         .delta = inside ? head.arguments.delta[head.statistic(t)] : 0.0F,
                         .slope = factors.slope};
  columns.first_key[row] = head.first_key(t);
}

// A block of the key/value side: its warps are kSplits teams, each of which has all of the block's
// keys, and every kSplits-th tile of queries.
template <int kSplits>
struct Teams {
  static constexpr int kWarpsOfTeam = kWarps / kSplits;
  static constexpr int kKeys = kWarpsOfTeam * kWarpRows;
};

template <int kWidth, int kSplits>
struct KeyValueShared {
  static constexpr int kKeys = Teams<kSplits>::kKeys;
  bf16 key[kKeys * kRowStride<bf16, kWidth>];
  bf16 value[kKeys * kRowStride<bf16, kWidth>];
  bf16 query[kStages][kSplits][kStreamRows * kRowStride<bf16, kWidth>];
  bf16 dout[kStages][kSplits][kStreamRows * kRowStride<bf16, kWidth>];
  QueryColumns columns[kStages][kSplits];
};

// Adds the teams' sums to those of the first, in order. `room` is for all of them but the first's;
// nobody uses it for anything else any more.
template <int kSplits, int kWidth>
__device__ __forceinline__ void add_teams(float* room,
                                          float (&dkey)[kWidth / 8][4],
                                          float (&dvalue)[kWidth / 8][4]) {
  constexpr int kElements = 2 * kWidth / 2;  // of a lane
  constexpr int kTeamElements = Teams<kSplits>::kWarpsOfTeam * kElements * gpu::kWarpSize;
  const int team = gpu::warp_id() / Teams<kSplits>::kWarpsOfTeam;
  float* const own = room +
                     gpu::warp_id() % Teams<kSplits>::kWarpsOfTeam * kElements * gpu::kWarpSize +
                     gpu::lane_id();
  const auto for_each = [&](const auto& visit) {
#pragma unroll
    for (int i = 0; i < kElements / 2; ++i) {
      visit(i, dkey[i / 4][i % 4]);
      visit(kElements / 2 + i, dvalue[i / 4][i % 4]);
    }
  };
  if (team > 0) {
    float* const to = own + (team - 1) * kTeamElements;
    for_each([&](int i, float& element) { to[i * gpu::kWarpSize] = element; });
  }
  gpu::sync_threads();  // the others' sums are there
  if (team == 0) {
#pragma unroll 1
    for (int other = 1; other < kSplits; ++other) {
      const float* const from = own + (other - 1) * kTeamElements;
      for_each([&](int i, float& element) { element += from[i * gpu::kWarpSize]; });
    }
  }
}

// grid: B * G, tiles of keys; block: kThreads; shared: KeyValueShared; requires H % 8 == 0,
// H <= kWidth, lse and delta. The first tile, which is seen by the most queries, is first in line.
template <int kWidth, bool kCapped, int kSplits>
__global__ void __launch_bounds__(kThreads, 1)
    attention_backward_kv_kernel(AttentionArguments<bf16> arguments) {
  using Shared = KeyValueShared<kWidth, kSplits>;
  auto& shared = *gpu::dynamic_shared<Shared>();
  constexpr int kKeys = Shared::kKeys;
  constexpr int kTiles = kStreamRows / 8;
  const AttentionShape& shape = arguments.shape;
  const int group = static_cast<int>(shape.group());
  const int num_kv_heads = static_cast<int>(shape.G);
  const int b = static_cast<int>(blockIdx.x) / num_kv_heads;
  const int first_head = static_cast<int>(blockIdx.x) % num_kv_heads * group;
  const AttentionHead<bf16> first = {arguments, b, first_head};
  const int num_tokens = first.num_tokens();
  const int num_keys = first.num_keys();
  const int width = first.width();
  const int first_key = static_cast<int>(blockIdx.y) * kKeys;
  const int end_key = std::min(num_keys, first_key + kKeys);
  const int team = gpu::warp_id() / Teams<kSplits>::kWarpsOfTeam;
  const int warp_row = gpu::warp_id() % Teams<kSplits>::kWarpsOfTeam * kWarpRows;
  const int warp_key = first_key + warp_row;
  const Bend<kCapped> bend(arguments);
  // The first queries that see any of this warp's keys, and all of them, but for documents.
  const int warp_first_query = first.first_query(std::min(warp_key, num_keys - 1));
  const int warp_all_query = first.first_query(std::min(warp_key + kWarpRows, num_keys) - 1);
  // The first that sees a row's key.
  int row_query[2];
  for (int half = 0; half < 2; ++half) {
    row_query[half] =
        first.first_query(std::min(warp_key + accumulator_row(2 * half), num_keys - 1));
  }

  // The queries that see a key of this tile, for each head in turn.
  const int first_query = first.first_query(first_key) / kStreamRows * kStreamRows;
  const int end_query = first.end_query(end_key - 1);
  const int tiles_per_head = (end_query - first_query + kStreamRows - 1) / kStreamRows;
  const int num_steps = group * tiles_per_head;
  const auto head_of = [&](int step) {
    return AttentionHead<bf16>{arguments, b, first_head + step / tiles_per_head};
  };
  const auto query_of = [&](int step) { return first_query + step % tiles_per_head * kStreamRows; };
  const auto load_queries = [&](int stage, int first_step) {
    for (int i = 0; i < kSplits && first_step + i < num_steps; ++i) {
      const AttentionHead<bf16> head = head_of(first_step + i);
      const int query = query_of(first_step + i);
      load_tile_async<bf16, kWidth, kStreamRows>(
          shared.query[stage][i], head.of_queries(arguments.query), query, num_tokens, width);
      load_tile_async<bf16, kWidth, kStreamRows>(
          shared.dout[stage][i], head.of_outputs(arguments.dout), query, num_tokens, width);
      load_columns(shared.columns[stage][i], bend, head, query);
    }
    gpu::copy_async_commit();
  };

  float dkey[kWidth / 8][4] = {};
  float dvalue[kWidth / 8][4] = {};
  load_tile_async<bf16, kWidth, kKeys>(
      shared.key, first.of_keys(arguments.key), first_key, num_keys, width);
  load_tile_async<bf16, kWidth, kKeys>(
      shared.value, first.of_keys(arguments.value), first_key, num_keys, width);
  load_queries(0, 0);
  for (int steps = 0, stage = 0; steps < num_steps; steps += kSplits, stage ^= 1) {
    gpu::copy_async_wait<0>();
    // These tiles, their columns and the keys are in shared memory, and no warp reads the other
    // stage any more.
    gpu::sync_threads();
    if (steps + kSplits < num_steps) {
      load_queries(stage ^ 1, steps + kSplits);
    }
    if (steps + team >= num_steps) {
      continue;  // nothing is left for this team
    }
    const int query = query_of(steps + team);
    if (query + kStreamRows <= warp_first_query) {
      continue;  // all queries are older than this warp's keys
    }

    // Transposed scores and gradients of the probabilities: keys by queries.
    float probability[kTiles][4] = {};
    float dscore[kTiles][4] = {};
    const int own = warp_row * kRowStride<bf16, kWidth>;
    const bf16* const queries = shared.query[stage][team];
    const bf16* const douts = shared.dout[stage][team];
    multiply_transposed<kWidth, kTiles>(probability, shared.key + own, queries);
    multiply_transposed<kWidth, kTiles>(dscore, shared.value + own, douts);
    const QueryColumns& columns = shared.columns[stage][team];
    const auto score_to_gradient = [&]<bool kMasked>() {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const int at = accumulator_column(tile, pair);
          const QueryColumn column = columns.column[at];
          const int oldest = kMasked ? columns.first_key[at] : 0;
#pragma unroll
          for (int element = pair; element < 4; element += 2) {
            const int s = warp_key + accumulator_row(element);
            const float v = bend(probability[tile][element]);
            float p = gpu::exp2_approx(fmaf(v, column.factor, column.offset));
            if (kMasked && (query + at < row_query[element / 2] || s < oldest)) {
              p = 0.0F;
            }
            dscore[tile][element] =
                p * (dscore[tile][element] - column.delta) * bend.slope(v, column.slope);
            probability[tile][element] = p;
          }
        }
      }
    };
    // All queries see all keys of this warp, but for those that are no keys, whose gradients are
    // not looked at.
    if (query >= warp_all_query && columns.first_key[kStreamRows - 1] <= warp_key) {
      score_to_gradient.template operator()<false>();
    } else {
      score_to_gradient.template operator()<true>();
    }

    multiply_accumulators<kWidth, kTiles>(dvalue, probability, douts);
    multiply_accumulators<kWidth, kTiles>(dkey, dscore, queries);
  }

  gpu::copy_async_wait<0>();  // of a block whose keys nobody sees
  if constexpr (kSplits > 1) {
    static_assert(sizeof(Shared) >=
                  sizeof(float) * (kSplits - 1) * std::size_t{2 * kKeys * kWidth});
    gpu::sync_threads();  // no warp reads the tiles any more
    add_teams<kSplits, kWidth>(reinterpret_cast<float*>(&shared), dkey, dvalue);
    if (team > 0) {
      return;
    }
  }
  // What is no key has been given gradients like one.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int s = warp_key + accumulator_row(2 * half);
    if (s < num_keys && !first.key_valid(s)) {
#pragma unroll
      for (int tile = 0; tile < kWidth / 8; ++tile) {
        for (int element = 2 * half; element < 2 * half + 2; ++element) {
          dkey[tile][element] = 0.0F;
          dvalue[tile][element] = 0.0F;
        }
      }
    }
  }
  store_rows<kWidth>(first.of_keys(arguments.dkey), dkey, warp_key, num_keys, width);
  store_rows<kWidth>(first.of_keys(arguments.dvalue), dvalue, warp_key, num_keys, width);
}

template <int kWidth>
struct QueryShared {
  bf16 query[kOwnRows * kRowStride<bf16, kWidth>];
  bf16 dout[kOwnRows * kRowStride<bf16, kWidth>];
  bf16 key[kStages][kStreamRows * kRowStride<bf16, kWidth>];
  bf16 value[kStages][kStreamRows * kRowStride<bf16, kWidth>];
};

// grid: B * N, tiles of queries; block: kThreads; shared: QueryShared; requires H % 8 == 0,
// H <= kWidth, lse and delta. The last tile, which sees the most keys, is first in line.
template <int kWidth, bool kCapped>
__global__ void __launch_bounds__(kThreads, 1)
    attention_backward_query_kernel(AttentionArguments<bf16> arguments) {
  auto& shared = *gpu::dynamic_shared<QueryShared<kWidth>>();
  constexpr int kTiles = kStreamRows / 8;
  const int num_heads = static_cast<int>(arguments.shape.N);
  const AttentionHead<bf16> head = {arguments,
                                    static_cast<int>(blockIdx.x) / num_heads,
                                    static_cast<int>(blockIdx.x) % num_heads};
  const int num_tokens = head.num_tokens();
  const int width = head.width();
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kOwnRows;
  const int end_query = std::min(num_tokens, first_query + kOwnRows);
  const int warp_row = gpu::warp_id() * kWarpRows;

  const int warp_first = first_query + warp_row;
  // A row beyond the last query computes what that one does, and is not stored.
  const auto query_of = [&](int row) { return std::min(warp_first + row, num_tokens - 1); };
  // Keys from warp_first_key to warp_last_key are seen by all of the warp's rows.
  const int warp_first_key = head.first_key(query_of(kWarpRows - 1));
  const int warp_last_key = head.last_key(query_of(0));
  const int warp_newest_key = head.last_key(query_of(kWarpRows - 1));  // that any of the rows sees
  const Bend<kCapped> bend(arguments);
  LogitFactors factors[2];
  float delta[2];
  int first_key[2];
  int last_key[2];
  for (int half = 0; half < 2; ++half) {
    const int t = query_of(accumulator_row(2 * half));
    const float lse = arguments.lse[head.statistic(t)];
    factors[half] = bend.factors(head.temperature(t));
    // Without a key its probabilities are 0.
    factors[half].shift = lse == -INFINITY ? -INFINITY : factors[half].shift - kLog2E * lse;
    delta[half] = arguments.delta[head.statistic(t)];
    first_key[half] = head.first_key(t);
    last_key[half] = head.last_key(t);
  }

  const auto load_keys = [&](int stage, int keys) {
    load_tile_async<bf16, kWidth, kStreamRows>(
        shared.key[stage], head.of_keys(arguments.key), keys, head.num_keys(), width);
    load_tile_async<bf16, kWidth, kStreamRows>(
        shared.value[stage], head.of_keys(arguments.value), keys, head.num_keys(), width);
    gpu::copy_async_commit();
  };

  float dquery[kWidth / 8][4] = {};
  const int begin = head.first_key(first_query) / kStreamRows * kStreamRows;
  load_tile_async<bf16, kWidth, kOwnRows>(
      shared.query, head.of_queries(arguments.query), first_query, num_tokens, width);
  load_tile_async<bf16, kWidth, kOwnRows>(
      shared.dout, head.of_outputs(arguments.dout), first_query, num_tokens, width);
  const int end = head.last_key(end_query - 1) + 1;
  load_keys(0, begin);
  for (int keys = begin, stage = 0; keys < end; keys += kStreamRows, stage ^= 1) {
    gpu::copy_async_wait<0>();
    // This tile and the queries are in shared memory, and no warp reads the other stage any more.
    gpu::sync_threads();
    if (keys + kStreamRows < end) {
      load_keys(stage ^ 1, keys + kStreamRows);
    }
    if (keys > warp_newest_key) {
      continue;  // all keys are newer than this warp's queries
    }
    static_assert(kStreamRows == 32);
    const std::uint32_t valid = valid_keys(head, keys);

    float score[kTiles][4] = {};
    float dscore[kTiles][4] = {};
    const int own = warp_row * kRowStride<bf16, kWidth>;
    multiply_transposed<kWidth, kTiles>(score, shared.query + own, shared.key[stage]);
    multiply_transposed<kWidth, kTiles>(dscore, shared.dout + own, shared.value[stage]);
    const auto score_to_gradient = [&]<bool kMasked>() {
      std::uint32_t allowed[2] = {};
      if constexpr (kMasked) {
        for (int half = 0; half < 2; ++half) {
          const std::uint32_t seen =
              bits_between(first_key[half] - keys, last_key[half] + 1 - keys);
          allowed[half] = (valid & seen) >> accumulator_column(0, 0);
        }
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int element = 0; element < 4; ++element) {
          const int half = element / 2;
          const float v = bend(score[tile][element]);
          float p = gpu::exp2_approx(fmaf(v, factors[half].factor, factors[half].shift));
          if (kMasked && !is_allowed(allowed[half], tile, element)) {
            p = 0.0F;
          }
          dscore[tile][element] =
              p * (dscore[tile][element] - delta[half]) * bend.slope(v, factors[half].slope);
        }
      }
    };
    if (valid == gpu::kFullMask && keys >= warp_first_key &&
        keys + kStreamRows - 1 <= warp_last_key) {
      score_to_gradient.template operator()<false>();
    } else {
      score_to_gradient.template operator()<true>();
    }
    multiply_accumulators<kWidth, kTiles>(dquery, dscore, shared.key[stage]);
  }
  gpu::copy_async_wait<0>();  // of a block that sees no key
  store_rows<kWidth>(head.of_queries(arguments.dquery), dquery, warp_first, num_tokens, width);
}

}  // namespace

void launch_attention_backward(const AttentionArguments<bf16>& arguments, Stream stream) {
  const AttentionShape& shape = arguments.shape;
  visit_attention(arguments, [&]<int kWidth, bool kCapped>() {
    const auto launch_kv = [&]<int kSplits>() {
      launch(
          attention_backward_kv_kernel<kWidth, kCapped, kSplits>,
          {.grid = {.x = shape.B * shape.G, .y = ceil_div(shape.num_keys, Teams<kSplits>::kKeys)},
           .block = {.x = kThreads},
           .shared_bytes = sizeof(KeyValueShared<kWidth, kSplits>),
           .stream = stream},
          arguments);
    };
    if (shape.B * shape.G * ceil_div(shape.num_keys, kOwnRows) >= kBlocksWanted) {
      launch_kv.template operator()<1>();
    } else {
      launch_kv.template operator()<kManySplits>();
    }
    launch(attention_backward_query_kernel<kWidth, kCapped>,
           {.grid = {.x = shape.B * shape.N, .y = ceil_div(shape.S, kOwnRows)},
            .block = {.x = kThreads},
            .shared_bytes = sizeof(QueryShared<kWidth>),
            .stream = stream},
           arguments);
  });
}

}  // namespace memphis::kernels::cuda
