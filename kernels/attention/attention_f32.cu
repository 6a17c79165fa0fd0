// SPDX-License-Identifier: Apache-2.0
//
// Attention in f32, which has no tensor cores: a block a tile of 32 queries (dk and dv: of 32
// keys), four lanes a row, the other side streaming past in tiles of 32. Each lane forms every
// fourth score of its row and every fourth vector of its row of the result. For tests and for small
// models: bound by shared memory, about one 16-byte access for 4 multiply-adds.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_gpu.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kRows = 32;  // of either side's tile
constexpr int kLanesPerRow = 4;
constexpr int kThreads = kRows * kLanesPerRow;
constexpr int kScores = kRows / kLanesPerRow;  // of a lane
constexpr int kVector = gpu::kVectorWidth<float>;
constexpr int kWeightStride = kRows + 1;  // eight rows of a warp in eight banks

template <int kWidth>
constexpr int kTileElements = kRows* kRowStride<float, kWidth>;
// Of a row of the result, a lane holds vector lane + 4 i.
template <int kWidth>
constexpr int kVectors = kWidth / (kLanesPerRow * kVector);

__device__ __forceinline__ int own_row() {
  return static_cast<int>(threadIdx.x) / kLanesPerRow;
}
__device__ __forceinline__ int own_lane() {
  return static_cast<int>(threadIdx.x) % kLanesPerRow;
}
// The column of the tile of scores that is score i of this lane.
__device__ __forceinline__ int own_column(int i) {
  return own_lane() + i * kLanesPerRow;
}

struct Logit {
  float value;
  float slope;  // of the logit by q.k
};

__device__ __forceinline__ Logit logit_of(const AttentionArguments<float>& arguments,
                                          float product,
                                          float temperature) {
  if (arguments.cap > 0.0F) {
    const float capped = tanhf(arguments.scale / arguments.cap * product);
    return {arguments.cap * temperature * capped,
            arguments.scale * temperature * (1.0F - capped * capped)};
  }
  const float factor = arguments.scale * temperature;
  return {factor * product, factor};
}

// products[i] = own row of `rows` . row own_column(i) of `columns`.
template <int kWidth>
__device__ __forceinline__ void multiply_transposed(float (&products)[kScores],
                                                    const float* rows,
                                                    const float* columns) {
  const float* const left = rows + own_row() * kRowStride<float, kWidth>;
  const float* const right = columns + own_lane() * kRowStride<float, kWidth>;
  for (float& product : products) {
    product = 0.0F;
  }
  for (int h = 0; h < kWidth; h += kVector) {
    const gpu::Vector<float> a = gpu::load_vector(left + h);
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const gpu::Vector<float> b =
          gpu::load_vector(right + i * kLanesPerRow * kRowStride<float, kWidth> + h);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        products[i] += a.values[j] * b.values[j];
      }
    }
  }
}

// result += own row of `weights` [kRows, kRows] times `rows`.
template <int kWidth>
__device__ __forceinline__ void accumulate(float (&result)[kVectors<kWidth>][kVector],
                                           const float* weights,
                                           const float* rows) {
  const float* const own = weights + own_row() * kWeightStride;
  for (int row = 0; row < kRows; ++row) {
    const float weight = own[row];
    const float* const from = rows + row * kRowStride<float, kWidth> + own_lane() * kVector;
#pragma unroll
    for (int i = 0; i < kVectors<kWidth>; ++i) {
      const gpu::Vector<float> values = gpu::load_vector(from + i * kLanesPerRow * kVector);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        result[i][j] += weight * values.values[j];
      }
    }
  }
}

template <int kWidth>
__device__ __forceinline__ void store_row(float* row,
                                          const float (&result)[kVectors<kWidth>][kVector],
                                          int width) {
#pragma unroll
  for (int i = 0; i < kVectors<kWidth>; ++i) {
    const int column = (own_lane() + i * kLanesPerRow) * kVector;
    if (column < width) {
      gpu::Vector<float> values;
      for (int j = 0; j < kVector; ++j) {
        values.values[j] = result[i][j];
      }
      gpu::store_vector(row + column, values);
    }
  }
}

template <int kWidth>
struct ForwardShared {
  float query[kTileElements<kWidth>];
  float key[kTileElements<kWidth>];
  float value[kTileElements<kWidth>];
  float probability[kRows * kWeightStride];
};

// grid: B * N, tiles of queries; block: kThreads; shared: ForwardShared; requires H % 8 == 0 and
// H <= kWidth. The last tile, which sees the most keys, is first in line.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_forward_kernel(AttentionArguments<float> arguments) {
  auto& shared = *gpu::dynamic_shared<ForwardShared<kWidth>>();
  const int num_heads = static_cast<int>(arguments.shape.N);
  const AttentionHead<float> head = {arguments,
                                     static_cast<int>(blockIdx.x) / num_heads,
                                     static_cast<int>(blockIdx.x) % num_heads};
  const int num_tokens = head.num_tokens();
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kRows;
  const int end_query = std::min(num_tokens, first_query + kRows);
  const int t = first_query + own_row();
  const bool inside = t < num_tokens;
  const int first_key = inside ? head.first_key(t) : 0;
  const int last_key = inside ? head.last_key(t) : -1;
  const float temperature = inside ? head.temperature(t) : 1.0F;

  float result[kVectors<kWidth>][kVector] = {};
  float maximum = -INFINITY;
  float sum = 0.0F;  // this lane's part
  load_tile_async<float, kWidth, kRows>(
      shared.query, head.of_queries(arguments.query), first_query, num_tokens, head.width());
  gpu::copy_async_commit();
  const int begin = head.first_key(first_query) / kRows * kRows;
  const int end = head.last_key(end_query - 1) + 1;
  for (int keys = begin; keys < end; keys += kRows) {
    load_tile_async<float, kWidth, kRows>(
        shared.key, head.of_keys(arguments.key), keys, head.num_keys(), head.width());
    load_tile_async<float, kWidth, kRows>(
        shared.value, head.of_keys(arguments.value), keys, head.num_keys(), head.width());
    gpu::copy_async_commit();
    gpu::copy_async_wait<0>();
    gpu::sync_threads();  // the tiles are in shared memory

    float score[kScores];
    multiply_transposed<kWidth>(score, shared.query, shared.key);
    float new_maximum = maximum;
    for (int i = 0; i < kScores; ++i) {
      const int s = keys + own_column(i);
      const bool allowed = s <= last_key && s >= first_key && head.key_valid(s);
      score[i] = allowed ? logit_of(arguments, score[i], temperature).value : -INFINITY;
      new_maximum = fmaxf(new_maximum, score[i]);
    }
    new_maximum = row_max(new_maximum);
    const float offset = new_maximum == -INFINITY ? 0.0F : new_maximum;  // no key so far
    const float factor = expf(maximum - offset);
    maximum = new_maximum;
    sum *= factor;
    for (auto& vector : result) {
      for (float& element : vector) {
        element *= factor;
      }
    }
    for (int i = 0; i < kScores; ++i) {
      const float p = expf(score[i] - offset);
      sum += p;
      shared.probability[own_row() * kWeightStride + own_column(i)] = p;
    }
    gpu::sync_warp();  // a row of probabilities is written and read by one warp
    accumulate<kWidth>(result, shared.probability, shared.value);
    gpu::sync_threads();  // all reads of the tiles are done: the next may arrive
  }

  gpu::copy_async_wait<0>();  // of a block that sees no key

  // Normalise and write. A row without a key has sum 0 and gets its mean from another kernel.
  const float total = row_sum(sum);
  if (inside) {
    const float inverse = total > 0.0F ? 1.0F / total : 0.0F;
    for (auto& vector : result) {
      for (float& element : vector) {
        element *= inverse;
      }
    }
    const HeadRows<float> out = head.of_outputs(arguments.out);
    store_row<kWidth>(out.data + t * out.stride, result, head.width());
    if (own_lane() == 0) {
      arguments.lse[head.statistic(t)] = total > 0.0F ? maximum + logf(total) : -INFINITY;
    }
  }
}

// What the key/value side of the backward pass needs of a tile of queries.
struct QueryStatistics {
  float lse[kRows];  // +inf where there is no query or it sees no key: its probabilities are then 0
  float delta[kRows];
  float temperature[kRows];
  int first_key[kRows];
  int last_key[kRows];  // -1 where there is no query
};

__device__ __forceinline__ void load_statistics(QueryStatistics& statistics,
                                                const AttentionHead<float>& head,
                                                int first) {
  const int row = static_cast<int>(threadIdx.x);
  if (row >= kRows) {
    return;
  }
  const int t = first + row;
  const bool inside = t < head.num_tokens();
  const float lse = inside ? head.arguments.lse[head.statistic(t)] : -INFINITY;
  statistics.lse[row] = lse == -INFINITY ? INFINITY : lse;
  statistics.delta[row] = inside ? head.arguments.delta[head.statistic(t)] : 0.0F;
  statistics.temperature[row] = inside ? head.temperature(t) : 1.0F;
  statistics.first_key[row] = inside ? head.first_key(t) : 0;
  statistics.last_key[row] = inside ? head.last_key(t) : -1;
}

template <int kWidth>
struct BackwardShared {
  float key[kTileElements<kWidth>];
  float value[kTileElements<kWidth>];
  float query[kTileElements<kWidth>];
  float dout[kTileElements<kWidth>];
  float probability[kRows * kWeightStride];
  float dscore[kRows * kWeightStride];
  QueryStatistics statistics;
};

// A tile of queries, of dout and of their statistics on its way to shared memory.
template <int kWidth>
__device__ __forceinline__ void load_queries_async(BackwardShared<kWidth>& shared,
                                                   const AttentionHead<float>& head,
                                                   int first) {
  load_tile_async<float, kWidth, kRows>(
      shared.query, head.of_queries(head.arguments.query), first, head.num_tokens(), head.width());
  load_tile_async<float, kWidth, kRows>(
      shared.dout, head.of_outputs(head.arguments.dout), first, head.num_tokens(), head.width());
  load_statistics(shared.statistics, head, first);
}

template <int kWidth>
__device__ __forceinline__ void load_keys_async(BackwardShared<kWidth>& shared,
                                                const AttentionHead<float>& head,
                                                int first) {
  load_tile_async<float, kWidth, kRows>(
      shared.key, head.of_keys(head.arguments.key), first, head.num_keys(), head.width());
  load_tile_async<float, kWidth, kRows>(
      shared.value, head.of_keys(head.arguments.value), first, head.num_keys(), head.width());
}

struct Gradient {
  float probability;
  float dscore;
};

// Of the query that is row `query` of the statistics by key s, from q.k and dout.v.
__device__ __forceinline__ Gradient score_gradient(const AttentionHead<float>& head,
                                                   const QueryStatistics& statistics,
                                                   int query,
                                                   int s,
                                                   float product,
                                                   float dprobability) {
  const bool allowed =
      s <= statistics.last_key[query] && s >= statistics.first_key[query] && head.key_valid(s);
  const Logit logit = logit_of(head.arguments, product, statistics.temperature[query]);
  const float p = allowed ? expf(logit.value - statistics.lse[query]) : 0.0F;
  return {p, p * (dprobability - statistics.delta[query]) * logit.slope};
}

// grid: B * G, tiles of keys; block: kThreads; shared: BackwardShared; requires H % 8 == 0,
// H <= kWidth, lse and delta. The first tile, which is seen by the most queries, is first in line.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_backward_kv_kernel(AttentionArguments<float> arguments) {
  auto& shared = *gpu::dynamic_shared<BackwardShared<kWidth>>();
  const AttentionShape& shape = arguments.shape;
  const int group = static_cast<int>(shape.group());
  const int b = static_cast<int>(blockIdx.x / shape.G);
  const int first_head = static_cast<int>(blockIdx.x % shape.G) * group;
  const AttentionHead<float> first = {arguments, b, first_head};
  const int num_keys = first.num_keys();
  const int first_key = static_cast<int>(blockIdx.y) * kRows;
  const int s = first_key + own_row();
  const int first_query = first.first_query(first_key) / kRows * kRows;
  const int end_query = first.end_query(std::min(num_keys, first_key + kRows) - 1);

  float dkey[kVectors<kWidth>][kVector] = {};
  float dvalue[kVectors<kWidth>][kVector] = {};
  load_keys_async(shared, first, first_key);
  gpu::copy_async_commit();
  for (int n = first_head; n < first_head + group; ++n) {
    const AttentionHead<float> head = {arguments, b, n};
    for (int query = first_query; query < end_query; query += kRows) {
      load_queries_async(shared, head, query);
      gpu::copy_async_commit();
      gpu::copy_async_wait<0>();
      gpu::sync_threads();  // the tiles and the statistics are in shared memory

      float product[kScores];
      float dprobability[kScores];
      multiply_transposed<kWidth>(product, shared.key, shared.query);
      multiply_transposed<kWidth>(dprobability, shared.value, shared.dout);
      for (int i = 0; i < kScores; ++i) {
        const int column = own_column(i);
        const Gradient gradient =
            score_gradient(head, shared.statistics, column, s, product[i], dprobability[i]);
        shared.probability[own_row() * kWeightStride + column] = gradient.probability;
        shared.dscore[own_row() * kWeightStride + column] = gradient.dscore;
      }
      gpu::sync_warp();  // a row of scores is written and read by one warp
      accumulate<kWidth>(dvalue, shared.probability, shared.dout);
      accumulate<kWidth>(dkey, shared.dscore, shared.query);
      gpu::sync_threads();  // all reads of the tiles are done: the next may arrive
    }
  }
  gpu::copy_async_wait<0>();  // of a block whose keys nobody sees
  if (s < num_keys) {
    const HeadRows<float> dkeys = first.of_keys(arguments.dkey);
    const HeadRows<float> dvalues = first.of_keys(arguments.dvalue);
    store_row<kWidth>(dkeys.data + s * dkeys.stride, dkey, first.width());
    store_row<kWidth>(dvalues.data + s * dvalues.stride, dvalue, first.width());
  }
}

// grid: B * N, tiles of queries; block: kThreads; shared: BackwardShared; requires H % 8 == 0,
// H <= kWidth, lse and delta. The last tile, which sees the most keys, is first in line.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_backward_query_kernel(AttentionArguments<float> arguments) {
  auto& shared = *gpu::dynamic_shared<BackwardShared<kWidth>>();
  const AttentionShape& shape = arguments.shape;
  const AttentionHead<float> head = {
      arguments, static_cast<int>(blockIdx.x / shape.N), static_cast<int>(blockIdx.x % shape.N)};
  const int num_tokens = head.num_tokens();
  const int first_query = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kRows;
  const int end_query = std::min(num_tokens, first_query + kRows);
  const int t = first_query + own_row();

  float dquery[kVectors<kWidth>][kVector] = {};
  load_queries_async(shared, head, first_query);
  gpu::copy_async_commit();
  const int begin = head.first_key(first_query) / kRows * kRows;
  const int end = head.last_key(end_query - 1) + 1;
  for (int keys = begin; keys < end; keys += kRows) {
    load_keys_async(shared, head, keys);
    gpu::copy_async_commit();
    gpu::copy_async_wait<0>();
    gpu::sync_threads();  // the tiles and the statistics are in shared memory

    float product[kScores];
    float dprobability[kScores];
    multiply_transposed<kWidth>(product, shared.query, shared.key);
    multiply_transposed<kWidth>(dprobability, shared.dout, shared.value);
    for (int i = 0; i < kScores; ++i) {
      const int column = own_column(i);
      const Gradient gradient = score_gradient(
          head, shared.statistics, own_row(), keys + column, product[i], dprobability[i]);
      shared.dscore[own_row() * kWeightStride + column] = gradient.dscore;
    }
    gpu::sync_warp();  // a row of scores is written and read by one warp
    accumulate<kWidth>(dquery, shared.dscore, shared.key);
    gpu::sync_threads();  // all reads of the tiles are done: the next may arrive
  }
  gpu::copy_async_wait<0>();  // of a block that sees no key
  if (t < num_tokens) {
    const HeadRows<float> dqueries = head.of_queries(arguments.dquery);
    store_row<kWidth>(dqueries.data + t * dqueries.stride, dquery, head.width());
  }
}

}  // namespace

void launch_attention_forward(const AttentionArguments<float>& arguments, Stream stream) {
  const AttentionShape& shape = arguments.shape;
  visit_head_width(shape.H, [&]<int kWidth>() {
    launch(attention_forward_kernel<kWidth>,
           {.grid = {.x = shape.B * shape.N, .y = ceil_div(shape.S, kRows)},
            .block = {.x = kThreads},
            .shared_bytes = sizeof(ForwardShared<kWidth>),
            .stream = stream},
           arguments);
  });
}

void launch_attention_backward(const AttentionArguments<float>& arguments, Stream stream) {
  const AttentionShape& shape = arguments.shape;
  visit_head_width(shape.H, [&]<int kWidth>() {
    launch(attention_backward_kv_kernel<kWidth>,
           {.grid = {.x = shape.B * shape.G, .y = ceil_div(shape.num_keys, kRows)},
            .block = {.x = kThreads},
            .shared_bytes = sizeof(BackwardShared<kWidth>),
            .stream = stream},
           arguments);
    launch(attention_backward_query_kernel<kWidth>,
           {.grid = {.x = shape.B * shape.N, .y = ceil_div(shape.S, kRows)},
            .block = {.x = kThreads},
            .shared_bytes = sizeof(BackwardShared<kWidth>),
            .stream = stream},
           arguments);
  });
}

}  // namespace memphis::kernels::cuda
