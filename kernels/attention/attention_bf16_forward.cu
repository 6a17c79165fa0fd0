// SPDX-License-Identifier: Apache-2.0
//
// A block a tile of 128 queries of one head, a warp 16 of them; keys and values stream past in
// tiles of 64, the next one on its way while one is multiplied. Scores live in registers only. A
// branch a tile decides whether they go through the mask.
// Bound by the tensor cores and, close behind, by shared memory: every warp reads each key and
// value tile.
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
constexpr int kQueries = kWarps * kWarpRows;
constexpr int kKeys = 64;
constexpr int kStages = 2;

template <int kWidth>
struct ForwardShared {
  bf16 query[kQueries * kRowStride<bf16, kWidth>];
  bf16 key[kStages][kKeys * kRowStride<bf16, kWidth>];
  bf16 value[kStages][kKeys * kRowStride<bf16, kWidth>];
};

// grid: B * N, tiles of queries; block: kThreads; shared: ForwardShared; requires H % 8 == 0 and
// H <= kWidth. The last tile, which sees the most keys, is first in line.
template <int kWidth, bool kCapped>
__global__ void __launch_bounds__(kThreads)
    attention_forward_kernel(AttentionArguments<bf16> arguments) {
  auto& shared = *gpu::dynamic_shared<ForwardShared<kWidth>>();
  const int num_heads = static_cast<int>(arguments.shape.N);
  const AttentionHead<bf16> head = {arguments,
                                    static_cast<int>(blockIdx.x) / num_heads,
                                    static_cast<int>(blockIdx.x) % num_heads};
  const int num_tokens = head.num_tokens();
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kQueries;
  const int end_query = std::min(num_tokens, first_query + kQueries);
  const int warp_first = first_query + gpu::warp_id() * kWarpRows;
  // A row beyond the last query computes what that one does, and is not stored.
  const auto query_of = [&](int row) { return std::min(warp_first + row, num_tokens - 1); };
  const int warp_last = query_of(kWarpRows - 1);
  // Keys from warp_first_key to warp_last_key are seen by all of the warp's rows.
  const int warp_first_key = head.first_key(warp_last);
  const int warp_last_key = head.last_key(query_of(0));
  const int warp_newest_key = head.last_key(warp_last);  // that any of the rows sees
  const Bend<kCapped> bend(arguments);
  int first_key[2];
  int last_key[2];
  LogitFactors factors[2];
  for (int half = 0; half < 2; ++half) {
    const int t = query_of(accumulator_row(2 * half));
    first_key[half] = head.first_key(t);
    last_key[half] = head.last_key(t);
    factors[half] = bend.factors(head.temperature(t));
  }

  const HeadRows<const bf16> keys_of_head = head.of_keys(arguments.key);
  const HeadRows<const bf16> values_of_head = head.of_keys(arguments.value);
  const auto load_keys = [&](int stage, int first) {
    load_tile_async<bf16, kWidth, kKeys>(
        shared.key[stage], keys_of_head, first, head.num_keys(), head.width());
    load_tile_async<bf16, kWidth, kKeys>(
        shared.value[stage], values_of_head, first, head.num_keys(), head.width());
    gpu::copy_async_commit();
  };

  float result[kWidth / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY};  // of logit / ln 2
  float sum[2] = {};                          // this lane's part

  const int begin = head.first_key(first_query) / kKeys * kKeys;
  load_tile_async<bf16, kWidth, kQueries>(
      shared.query, head.of_queries(arguments.query), first_query, num_tokens, head.width());
  const int end = head.last_key(end_query - 1) + 1;
  load_keys(0, begin);  // zeros, where no key is seen
  for (int keys = begin, stage = 0; keys < end; keys += kKeys, stage ^= 1) {
    gpu::copy_async_wait<0>();
    // This tile (and the queries) are in shared memory, and no warp reads the other stage any more.
    gpu::sync_threads();
    if (keys + kKeys < end) {
      load_keys(stage ^ 1, keys + kKeys);
    }
    if (keys > warp_newest_key) {
      continue;  // the diagonal has passed this warp's rows
    }
    std::uint32_t valid[kKeys / 32];
    std::uint32_t all_valid = gpu::kFullMask;
    for (int word = 0; word < kKeys / 32; ++word) {
      valid[word] = valid_keys(head, keys + word * 32);
      all_valid &= valid[word];
    }

    // Logits, in units of ln 2.
    float score[kKeys / 8][4] = {};
    multiply_transposed<kWidth, kKeys / 8>(
        score,
        shared.query + gpu::warp_id() * kWarpRows * kRowStride<bf16, kWidth>,
        shared.key[stage]);
    float new_maximum[2] = {maximum[0], maximum[1]};
    const auto score_to_logit = [&]<bool kMasked>() {
      std::uint32_t allowed[kKeys / 32][2] = {};
      if constexpr (kMasked) {
        for (int word = 0; word < kKeys / 32; ++word) {
          const int first = keys + word * 32;
          for (int half = 0; half < 2; ++half) {
            const std::uint32_t seen =
                bits_between(first_key[half] - first, last_key[half] + 1 - first);
            allowed[word][half] = (valid[word] & seen) >> accumulator_column(0, 0);
          }
        }
      }
#pragma unroll
      for (int tile = 0; tile < kKeys / 8; ++tile) {
#pragma unroll
        for (int element = 0; element < 4; ++element) {
          const int half = element / 2;
          float& logit = score[tile][element];
          logit = fmaf(bend(logit), factors[half].factor, factors[half].shift);
          if (kMasked && !is_allowed(allowed[tile / 4][half], tile, element)) {
            logit = -INFINITY;
          }
          new_maximum[half] = fmaxf(new_maximum[half], logit);
        }
      }
    };
    if (all_valid == gpu::kFullMask && keys >= warp_first_key &&
        keys + kKeys - 1 <= warp_last_key) {
      score_to_logit.template operator()<false>();
    } else {
      score_to_logit.template operator()<true>();
    }

    // Rescale what there is to the new maximum.
    float offset[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      new_maximum[half] = row_max(new_maximum[half]);
      offset[half] = new_maximum[half] == -INFINITY ? 0.0F : new_maximum[half];  // no key so far
      const float factor = gpu::exp2_approx(maximum[half] - offset[half]);
      maximum[half] = new_maximum[half];
      sum[half] *= factor;
#pragma unroll
      for (int tile = 0; tile < kWidth / 8; ++tile) {
        result[tile][2 * half] *= factor;
        result[tile][2 * half + 1] *= factor;
      }
    }

    // Probabilities, and their product with the values.
#pragma unroll
    for (int tile = 0; tile < kKeys / 8; ++tile) {
#pragma unroll
      for (int element = 0; element < 4; ++element) {
        score[tile][element] = gpu::exp2_approx(score[tile][element] - offset[element / 2]);
        sum[element / 2] += score[tile][element];
      }
    }
    multiply_accumulators<kWidth, kKeys / 8>(result, score, shared.value[stage]);
  }

  gpu::copy_async_wait<0>();  // of a block that sees no key

  // Normalise and write. A row without a key has sum 0 and gets its mean from another kernel.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = row_sum(sum[half]);
    const float inverse = total > 0.0F ? 1.0F / total : 0.0F;
#pragma unroll
    for (int tile = 0; tile < kWidth / 8; ++tile) {
      result[tile][2 * half] *= inverse;
      result[tile][2 * half + 1] *= inverse;
    }
    const int t = warp_first + accumulator_row(2 * half);
    if (t < num_tokens && gpu::lane_id() % 4 == 0) {
      arguments.lse[head.statistic(t)] =
          total > 0.0F ? kLn2 * maximum[half] + logf(total) : -INFINITY;
    }
  }
  store_rows<kWidth>(head.of_outputs(arguments.out), result, warp_first, num_tokens, head.width());
}

}  // namespace

void launch_attention_forward(const AttentionArguments<bf16>& arguments, Stream stream) {
  const AttentionShape& shape = arguments.shape;
  visit_attention(arguments, [&]<int kWidth, bool kCapped>() {
    launch(attention_forward_kernel<kWidth, kCapped>,
           {.grid = {.x = shape.B * shape.N, .y = ceil_div(shape.S, kQueries)},
            .block = {.x = kThreads},
            .shared_bytes = sizeof(ForwardShared<kWidth>),
            .stream = stream},
           arguments);
  });
}

}  // namespace memphis::kernels::cuda
