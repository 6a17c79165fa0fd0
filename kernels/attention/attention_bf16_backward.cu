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

template <int kWidth>
struct KeyValueShared {
  bf16 key[kOwnRows * kRowStride<bf16, kWidth>];
  bf16 value[kOwnRows * kRowStride<bf16, kWidth>];
  bf16 query[kStages][kStreamRows * kRowStride<bf16, kWidth>];
  bf16 dout[kStages][kStreamRows * kRowStride<bf16, kWidth>];
  QueryStatistics<kStreamRows> statistics[kStages];
};

// grid: B * G, tiles of keys; block: kThreads; shared: KeyValueShared; requires H % 8 == 0,
// H <= kWidth, lse and delta. The first tile, which is seen by the most queries, is first in line.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_backward_kv_kernel(AttentionArguments<bf16> arguments) {
  auto& shared = *gpu::dynamic_shared<KeyValueShared<kWidth>>();
  constexpr int kTiles = kStreamRows / 8;
  const AttentionShape& shape = arguments.shape;
  const int group = static_cast<int>(shape.group());
  const int num_kv_heads = static_cast<int>(shape.G);
  const int b = static_cast<int>(blockIdx.x) / num_kv_heads;
  const int first_head = static_cast<int>(blockIdx.x) % num_kv_heads * group;
  const AttentionHead<bf16> first = {arguments, b, first_head};
  const std::int64_t stride = shape.token_stride();
  const int num_tokens = first.num_tokens();
  const int width = first.width();
  const int first_key = static_cast<int>(blockIdx.y) * kOwnRows;
  const int end_key = std::min(num_tokens, first_key + kOwnRows);
  const int warp_row = gpu::warp_id() * kWarpRows;
  bool valid[2];
  for (int half = 0; half < 2; ++half) {
    const int s = first_key + warp_row + accumulator_row(2 * half);
    valid[half] = s < num_tokens && first.key_valid(s);
  }

  // The queries that see a key of this tile, for each head in turn.
  const int first_query = first_key / kStreamRows * kStreamRows;
  const int end_query = first.end_query(end_key - 1);
  const int tiles_per_head = (end_query - first_query + kStreamRows - 1) / kStreamRows;
  const auto head_of = [&](int step) {
    return AttentionHead<bf16>{arguments, b, first_head + step / tiles_per_head};
  };
  const auto query_of = [&](int step) { return first_query + step % tiles_per_head * kStreamRows; };
  const auto load_queries = [&](int stage, int step) {
    const AttentionHead<bf16> head = head_of(step);
    const int query = query_of(step);
    load_tile_async<bf16, kWidth, kStreamRows>(
        shared.query[stage], head.query(), stride, query, num_tokens, width);
    load_tile_async<bf16, kWidth, kStreamRows>(shared.dout[stage],
                                               arguments.dout + head.output(0),
                                               head.output_stride(),
                                               query,
                                               num_tokens,
                                               width);
    load_statistics(shared.statistics[stage], head, query);
    gpu::copy_async_commit();
  };

  float dkey[kWidth / 8][4] = {};
  float dvalue[kWidth / 8][4] = {};
  load_tile_async<bf16, kWidth, kOwnRows>(
      shared.key, first.key(), stride, first_key, num_tokens, width);
  load_tile_async<bf16, kWidth, kOwnRows>(
      shared.value, first.value(), stride, first_key, num_tokens, width);
  load_queries(0, 0);
  const int num_steps = group * tiles_per_head;
  for (int step = 0, stage = 0; step < num_steps; ++step, stage ^= 1) {
    gpu::copy_async_wait<0>();
    // This tile, its statistics and the keys are in shared memory, and no warp reads the other
    // stage any more.
    gpu::sync_threads();
    if (step + 1 < num_steps) {
      load_queries(stage ^ 1, step + 1);
    }
    const int query = query_of(step);
    if (query + kStreamRows <= first_key + warp_row) {
      continue;  // all queries are older than this warp's keys
    }

    // Transposed scores and gradients of the probabilities: keys by queries.
    float probability[kTiles][4] = {};
    float dscore[kTiles][4] = {};
    const int own = warp_row * kRowStride<bf16, kWidth>;
    multiply_transposed<kWidth, kTiles>(probability, shared.key + own, shared.query[stage]);
    multiply_transposed<kWidth, kTiles>(dscore, shared.value + own, shared.dout[stage]);
    const QueryStatistics<kStreamRows>& statistics = shared.statistics[stage];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int element = 0; element < 4; ++element) {
        const int column = accumulator_column(tile, element);
        const int s = first_key + warp_row + accumulator_row(element);
        const Logit logit =
            fast_logit(arguments, probability[tile][element], statistics.temperature[column]);
        const bool allowed =
            valid[element / 2] && s <= query + column && s >= statistics.first_key[column];
        const float p =
            allowed ? gpu::exp2_approx(kLog2E * (logit.value - statistics.lse[column])) : 0.0F;
        dscore[tile][element] =
            p * (dscore[tile][element] - statistics.delta[column]) * logit.slope;
        probability[tile][element] = p;
      }
    }

    multiply_accumulators<kWidth, kTiles>(dvalue, probability, shared.dout[stage]);
    multiply_accumulators<kWidth, kTiles>(dkey, dscore, shared.query[stage]);
  }

  bf16* const tokens = arguments.dqkv + first.token(0) * stride;
  const std::int64_t kv_head = first.kv_head();
  store_rows<kWidth>(
      tokens + shape.key_offset(kv_head), stride, dkey, first_key + warp_row, num_tokens, width);
  store_rows<kWidth>(tokens + shape.value_offset(kv_head),
                     stride,
                     dvalue,
                     first_key + warp_row,
                     num_tokens,
                     width);
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
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_backward_query_kernel(AttentionArguments<bf16> arguments) {
  auto& shared = *gpu::dynamic_shared<QueryShared<kWidth>>();
  constexpr int kTiles = kStreamRows / 8;
  const int num_heads = static_cast<int>(arguments.shape.N);
  const AttentionHead<bf16> head = {arguments,
                                    static_cast<int>(blockIdx.x) / num_heads,
                                    static_cast<int>(blockIdx.x) % num_heads};
  const std::int64_t stride = arguments.shape.token_stride();
  const int num_tokens = head.num_tokens();
  const int width = head.width();
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kOwnRows;
  const int end_query = std::min(num_tokens, first_query + kOwnRows);
  const int warp_row = gpu::warp_id() * kWarpRows;

  float lse[2];
  float delta[2];
  float temperature[2];
  int first_key[2];
  for (int half = 0; half < 2; ++half) {
    const int t = first_query + warp_row + accumulator_row(2 * half);
    const bool inside = t < num_tokens;
    const float stored = inside ? arguments.lse[head.statistic(t)] : -INFINITY;
    lse[half] = stored == -INFINITY ? INFINITY : stored;  // its probabilities are then 0
    delta[half] = inside ? arguments.delta[head.statistic(t)] : 0.0F;
    temperature[half] = inside ? head.temperature(t) : 1.0F;
    first_key[half] = inside ? head.first_key(t) : 0;
  }

  const auto load_keys = [&](int stage, int keys) {
    load_tile_async<bf16, kWidth, kStreamRows>(
        shared.key[stage], head.key(), stride, keys, num_tokens, width);
    load_tile_async<bf16, kWidth, kStreamRows>(
        shared.value[stage], head.value(), stride, keys, num_tokens, width);
    gpu::copy_async_commit();
  };

  float dquery[kWidth / 8][4] = {};
  const int begin = head.first_key(first_query) / kStreamRows * kStreamRows;
  load_tile_async<bf16, kWidth, kOwnRows>(
      shared.query, head.query(), stride, first_query, num_tokens, width);
  load_tile_async<bf16, kWidth, kOwnRows>(shared.dout,
                                          arguments.dout + head.output(0),
                                          head.output_stride(),
                                          first_query,
                                          num_tokens,
                                          width);
  load_keys(0, begin);
  for (int keys = begin, stage = 0; keys < end_query; keys += kStreamRows, stage ^= 1) {
    gpu::copy_async_wait<0>();
    // This tile and the queries are in shared memory, and no warp reads the other stage any more.
    gpu::sync_threads();
    if (keys + kStreamRows < end_query) {
      load_keys(stage ^ 1, keys + kStreamRows);
    }
    if (keys >= first_query + warp_row + kWarpRows) {
      continue;  // all keys are newer than this warp's queries
    }

    float score[kTiles][4] = {};
    float dscore[kTiles][4] = {};
    const int own = warp_row * kRowStride<bf16, kWidth>;
    multiply_transposed<kWidth, kTiles>(score, shared.query + own, shared.key[stage]);
    multiply_transposed<kWidth, kTiles>(dscore, shared.dout + own, shared.value[stage]);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int element = 0; element < 4; ++element) {
        const int half = element / 2;
        const int t = first_query + warp_row + accumulator_row(element);
        const int s = keys + accumulator_column(tile, element);
        const Logit logit = fast_logit(arguments, score[tile][element], temperature[half]);
        const bool allowed = s <= t && s >= first_key[half] && s < num_tokens && head.key_valid(s);
        const float p = allowed ? gpu::exp2_approx(kLog2E * (logit.value - lse[half])) : 0.0F;
        dscore[tile][element] = p * (dscore[tile][element] - delta[half]) * logit.slope;
      }
    }
    multiply_accumulators<kWidth, kTiles>(dquery, dscore, shared.key[stage]);
  }
  store_rows<kWidth>(arguments.dqkv + head.token(0) * stride + head.n * arguments.shape.H,
                     stride,
                     dquery,
                     first_query + warp_row,
                     num_tokens,
                     width);
}

}  // namespace

void launch_attention_backward(const AttentionArguments<bf16>& arguments, Stream stream) {
  const AttentionShape& shape = arguments.shape;
  const std::int64_t tiles = ceil_div(shape.S, kOwnRows);
  visit_head_width(shape.H, [&]<int kWidth>() {
    launch(attention_backward_kv_kernel<kWidth>,
           {.grid = {.x = shape.B * shape.G, .y = tiles},
            .block = {.x = kThreads},
            .shared_bytes = sizeof(KeyValueShared<kWidth>),
            .stream = stream},
           arguments);
    launch(attention_backward_query_kernel<kWidth>,
           {.grid = {.x = shape.B * shape.N, .y = tiles},
            .block = {.x = kThreads},
            .shared_bytes = sizeof(QueryShared<kWidth>),
            .stream = stream},
           arguments);
  });
}

}  // namespace memphis::kernels::cuda
