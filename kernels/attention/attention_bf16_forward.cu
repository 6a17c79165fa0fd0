// SPDX-License-Identifier: Apache-2.0
//
// A block a tile of 128 queries of one head, a warp 16 of them; keys and values stream past in
// tiles of 64, the next one on its way while one is multiplied. Scores live in registers only.
// Bound by the tensor cores and, close behind, by shared memory: every warp reads each key and
// value tile.
#include <algorithm>
#include <cmath>

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
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_forward_kernel(AttentionArguments<bf16> arguments) {
  auto& shared = *gpu::dynamic_shared<ForwardShared<kWidth>>();
  const int num_heads = static_cast<int>(arguments.shape.N);
  const AttentionHead<bf16> head = {arguments,
                                    static_cast<int>(blockIdx.x) / num_heads,
                                    static_cast<int>(blockIdx.x) % num_heads};
  const std::int64_t stride = arguments.shape.token_stride();
  const int num_tokens = head.num_tokens();
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kQueries;
  const int end_query = std::min(num_tokens, first_query + kQueries);
  const int warp_first = first_query + gpu::warp_id() * kWarpRows;
  const int warp_last = std::min(num_tokens, warp_first + kWarpRows) - 1;
  // Which keys the rows see: all of the warp's rows see those from warp_first_key to warp_first.
  const int warp_first_key = warp_first < num_tokens ? head.first_key(warp_last) : 0;
  int first_key[2];
  float temperature[2];
  for (int half = 0; half < 2; ++half) {
    const int t = warp_first + accumulator_row(2 * half);
    first_key[half] = t < num_tokens ? head.first_key(t) : 0;
    temperature[half] = t < num_tokens ? head.temperature(t) : 1.0F;
  }

  const auto load_keys = [&](int stage, int first) {
    load_tile_async<bf16, kWidth, kKeys>(
        shared.key[stage], head.key(), stride, first, num_tokens, head.width());
    load_tile_async<bf16, kWidth, kKeys>(
        shared.value[stage], head.value(), stride, first, num_tokens, head.width());
    gpu::copy_async_commit();
  };

  float result[kWidth / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY};  // of logit / ln 2
  float sum[2] = {};                          // this lane's part

  const int begin = head.first_key(first_query) / kKeys * kKeys;
  load_tile_async<bf16, kWidth, kQueries>(
      shared.query, head.query(), stride, first_query, num_tokens, head.width());
  load_keys(0, begin);
  for (int keys = begin, stage = 0; keys < end_query; keys += kKeys, stage ^= 1) {
    gpu::copy_async_wait<0>();
    // This tile (and the queries) are in shared memory, and no warp reads the other stage any more.
    gpu::sync_threads();
    if (keys + kKeys < end_query) {
      load_keys(stage ^ 1, keys + kKeys);
    }
    if (keys > warp_last) {
      continue;  // the diagonal has passed this warp's rows
    }

    // Scores, in units of ln 2.
    float score[kKeys / 8][4] = {};
    multiply_transposed<kWidth, kKeys / 8>(
        score,
        shared.query + gpu::warp_id() * kWarpRows * kRowStride<bf16, kWidth>,
        shared.key[stage]);
    const bool all_allowed =
        arguments.key_valid == nullptr && keys >= warp_first_key && keys + kKeys - 1 <= warp_first;
    float new_maximum[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int tile = 0; tile < kKeys / 8; ++tile) {
#pragma unroll
      for (int element = 0; element < 4; ++element) {
        const int half = element / 2;
        const float logit =
            kLog2E * fast_logit(arguments, score[tile][element], temperature[half]).value;
        const int s = keys + accumulator_column(tile, element);
        const bool allowed =
            all_allowed || (s <= warp_first + accumulator_row(element) && s >= first_key[half] &&
                            s < num_tokens && head.key_valid(s));
        score[tile][element] = allowed ? logit : -INFINITY;
        new_maximum[half] = fmaxf(new_maximum[half], score[tile][element]);
      }
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
  store_rows<kWidth>(arguments.out + head.output(0),
                     head.output_stride(),
                     result,
                     warp_first,
                     num_tokens,
                     head.width());
}

}  // namespace

void launch_attention_forward(const AttentionArguments<bf16>& arguments, Stream stream) {
  const AttentionShape& shape = arguments.shape;
  visit_head_width(shape.H, [&]<int kWidth>() {
    launch(attention_forward_kernel<kWidth>,
           {.grid = {.x = shape.B * shape.N, .y = ceil_div(shape.S, kQueries)},
            .block = {.x = kThreads},
            .shared_bytes = sizeof(ForwardShared<kWidth>),
            .stream = stream},
           arguments);
  });
}

}  // namespace memphis::kernels::cuda
