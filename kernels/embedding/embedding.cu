// SPDX-License-Identifier: Apache-2.0
//
// Forward: a block a row, neighbouring threads on neighbouring vectors of it. Bound by bytes.
//
// Backward: positions are put in order of their tokens, and of one token first to last; then a
// block for a position and 512 vectors of columns leaves at once unless the position is its token's
// first, and otherwise alone sums all of them, so that nothing is added atomically. At 64 registers
// and less four blocks are on an SM, with 48 KB or more of bf16's rows on their way. The order is
// found by comparing each token with every other, T^2 comparisons of two or three instructions:
// at 8192 tokens 6.7 million of a warp, which 528 schedulers issue in 13 thousand cycles, and at
// 65536 64 times as many; a sort would be several kernels. Bound by bytes besides.
#include "kernels/embedding/embedding.h"

#include <algorithm>
#include <cstdint>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/visit.h"
#include "kernels/whole_warps.h"

namespace memphis::kernels::cuda {
namespace {

using gpu::kWarpSize;
using gpu::load_floats;
using gpu::store_floats;

constexpr int kThreads = 256;  // any multiple of 128 fills an SM at these register counts
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kAhead = 4;  // rows that a thread reads at once: a frequent token has thousands
constexpr int kRuns = 2;   // of columns, of which a thread has some each

// The rows of the vocabulary that this rank holds.
struct Rows {
  std::int64_t begin;
  std::int64_t count;
};

// grid: T, block: whole warps, shared: none; requires D % kWidth == 0.
template <class T, int kWidth>
__global__ void embedding_forward_kernel(T* y_TD,
                                         const T* weight_VD,
                                         const std::int32_t* tokens_T,
                                         std::int64_t width,
                                         Rows rows,
                                         float multiplier) {
  const std::int64_t t = blockIdx.x;
  T* const y = y_TD + t * width;
  const std::int64_t row = tokens_T[t] - rows.begin;
  const bool is_here = row >= 0 && row < rows.count;
  const T* const weight = weight_VD + (is_here ? row : 0) * width;
  for (std::int64_t d = static_cast<std::int64_t>(threadIdx.x) * kWidth; d < width;
       d += static_cast<std::int64_t>(blockDim.x) * kWidth) {
    float values[kWidth] = {};
    if (is_here) {
      load_floats(weight + d, values);
    }
    for (int i = 0; i < kWidth; ++i) {
      values[i] *= multiplier;
    }
    store_floats(y + d, values);
  }
}

// What stands before the first position of each token in the order; the others stand there as they
// are.
__device__ __forceinline__ std::int32_t as_first(std::int32_t position) {
  return ~position;
}
__device__ __forceinline__ bool is_first(std::int32_t entry) {
  return entry < 0;
}

// A warp's lanes take kWarpSize positions, the same in all warps of a block, and compare their
// tokens with every kWarps-th four tokens: those before the block's positions, which come first
// where they are equal, the block's own, and those behind.
//
// grid: T / kWarpSize, block: kThreads, shared: none.
__global__ void embedding_order_kernel(std::int32_t* __restrict__ order_T,
                                       const std::int32_t* __restrict__ tokens_T,
                                       int num_tokens) {
  constexpr int kAtOnce = gpu::kVectorWidth<std::int32_t>;
  static_assert(kWarps * kAtOnce == kWarpSize,
                "a block's own positions are one round of its warps");
  __shared__ int ranks[kWarps][kWarpSize];
  __shared__ unsigned met[kWarps];  // a bit for each lane
  const int lane = gpu::lane_id();
  const int warp = gpu::warp_id();
  const int own = static_cast<int>(blockIdx.x) * kWarpSize;
  const int t = own + lane;
  const std::int32_t token = tokens_T[t < num_tokens ? t : num_tokens - 1];

  // How many come before, and whether the token is among them.
  int rank = 0;
  bool is_met = false;
#pragma unroll 4
  for (int p = warp * kAtOnce; p < own; p += kWarpSize) {
    const gpu::Vector<std::int32_t> others = gpu::load_vector(tokens_T + p);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      gpu::count_if(rank, others.values[i] <= token);
      is_met = is_met || others.values[i] == token;
    }
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    const int other_lane = warp * kAtOnce + i;
    const std::int32_t other = gpu::shuffle_from(token, other_lane);
    const bool is_earlier = other == token && other_lane < lane;
    gpu::count_if(rank, own + other_lane < num_tokens && (other < token || is_earlier));
    is_met = is_met || is_earlier;
  }
  const int behind = own + kWarpSize;
  const int whole = num_tokens / kAtOnce * kAtOnce;
#pragma unroll 4
  for (int p = behind + warp * kAtOnce; p < whole; p += kWarpSize) {
    const gpu::Vector<std::int32_t> others = gpu::load_vector(tokens_T + p);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      gpu::count_if(rank, others.values[i] < token);
    }
  }
  for (int p = behind > whole ? behind : whole; p < num_tokens && warp == 0; ++p) {
    gpu::count_if(rank, tokens_T[p] < token);
  }
  const unsigned are_met = gpu::ballot(is_met);
  ranks[warp][lane] = rank;
  if (lane == 0) {
    met[warp] = are_met;
  }
  gpu::sync_threads();  // the counts of all warps are written

  if (warp == 0 && t < num_tokens) {
    rank = 0;
    unsigned met_by_any = 0;
    for (int w = 0; w < kWarps; ++w) {
      rank += ranks[w][lane];
      met_by_any |= met[w];
    }
    is_met = (met_by_any >> static_cast<unsigned>(lane) & 1U) != 0;
    order_T[rank] = is_met ? t : as_first(t);
  }
}

// The order from place `begin` on; behind its end stand first positions.
__device__ __forceinline__ void read_order(std::int32_t (&entries)[kAhead],
                                           const std::int32_t* order_T,
                                           std::int64_t begin,
                                           std::int64_t num_tokens) {
#pragma unroll
  for (int a = 0; a < kAhead; ++a) {
    entries[a] = begin + a < num_tokens ? order_T[begin + a] : as_first(0);
  }
}

// A thread takes kWidth columns of each of kRuns runs, which are as long as the block is wide: were
// they one, of eight f32, an access would leave half of each sector to the next.
//
// grid: T x blocks that share a row, block: whole warps, shared: none; requires D % kWidth == 0.
template <class T, int kWidth>
__global__ void embedding_backward_kernel(float* __restrict__ dweight_VD,
                                          const T* __restrict__ dy_TD,
                                          const std::int32_t* __restrict__ tokens_T,
                                          const std::int32_t* __restrict__ order_T,
                                          std::int64_t num_tokens,
                                          std::int64_t width,
                                          Rows rows,
                                          float multiplier) {
  std::int64_t place = blockIdx.x;
  std::int32_t entries[kAhead];
  read_order(entries, order_T, place, num_tokens);
  // A run that the row does not have is the first one once more, and is not stored.
  std::int64_t columns[kRuns];
  bool has_run[kRuns];
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    const std::int64_t run = static_cast<std::int64_t>(blockIdx.y) * kRuns + r;
    columns[r] = (run * blockDim.x + threadIdx.x) * kWidth;
    has_run[r] = columns[r] < width;
    columns[r] = has_run[r] ? columns[r] : columns[0];
  }
  if (!is_first(entries[0]) || !has_run[0]) {
    return;
  }
  entries[0] = as_first(entries[0]);  // which is its own inverse
  const std::int64_t row = tokens_T[entries[0]] - rows.begin;
  if (row < 0 || row >= rows.count) {
    return;  // another rank has the token
  }
  float sums[kRuns][kWidth];
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    load_floats(dweight_VD + row * width + columns[r], sums[r]);
  }
  for (bool is_more = true; is_more;) {
    // All rows are on their way before the first of them is added, and so is the order of the next.
    gpu::Vector<T, kWidth> dy[kAhead][kRuns];
    bool is_here[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      is_here[a] = !is_first(entries[a]) && (a == 0 || is_here[a - 1]);
      if (is_here[a]) {
#pragma unroll
        for (int r = 0; r < kRuns; ++r) {
          dy[a][r] = gpu::load_vector<kWidth>(dy_TD + entries[a] * width + columns[r]);
        }
      }
    }
    place += kAhead;
    read_order(entries, order_T, place, num_tokens);
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (is_here[a]) {
#pragma unroll
        for (int r = 0; r < kRuns; ++r) {
#pragma unroll
          for (int c = 0; c < kWidth; ++c) {
            sums[r][c] += multiplier * gpu::to_float(dy[a][r].values[c]);
          }
        }
      }
    }
    is_more = is_here[kAhead - 1];
  }
#pragma unroll
  for (int r = 0; r < kRuns; ++r) {
    if (has_run[r]) {
      store_floats(dweight_VD + row * width + columns[r], sums[r]);
    }
  }
}

Launch choose_forward_launch(std::int64_t num_tokens,
                             std::int64_t width,
                             int vector_width,
                             Stream stream) {
  return {.grid = {.x = num_tokens},
          .block = {.x = whole_warps(ceil_div(width, vector_width), kThreads)},
          .stream = stream};
}

// The blocks of a row share its vectors out evenly.
Launch choose_backward_launch(std::int64_t num_tokens,
                              std::int64_t width,
                              int vector_width,
                              Stream stream) {
  const std::int64_t num_vectors = ceil_div(width, vector_width);
  const std::int64_t blocks = std::max<std::int64_t>(1, ceil_div(num_vectors, kRuns * kThreads));
  return {.grid = {.x = num_tokens, .y = blocks},
          .block = {.x = whole_warps(ceil_div(num_vectors, kRuns * blocks), kThreads)},
          .stream = stream};
}

template <class T, int kWidth>
void launch_forward(const EmbeddingForward& op, Stream stream) {
  const std::int64_t width = op.y_TD.dim(1);
  launch(embedding_forward_kernel<T, kWidth>,
         choose_forward_launch(op.y_TD.dim(0), width, kWidth, stream),
         op.y_TD.as<T>(),
         op.weight_VD.as<T>(),
         op.tokens_T.as<std::int32_t>(),
         width,
         Rows{.begin = op.vocab_begin, .count = op.weight_VD.dim(0)},
         op.multiplier);
}

template <class T, int kWidth>
void launch_backward(const EmbeddingBackward& op, Stream stream) {
  const std::int64_t num_tokens = op.dy_TD.dim(0);
  const std::int64_t width = op.dy_TD.dim(1);
  // Tokens have few of the rows, so that finding the others would cost more than writing these
  // twice.
  if (op.weight_gradient == WeightGradient::write) {
    device_zero(op.dweight_VD.data, op.dweight_VD.bytes(), stream);
  }
  launch(
      embedding_order_kernel,
      {.grid = {.x = ceil_div(num_tokens, kWarpSize)}, .block = {.x = kThreads}, .stream = stream},
      op.order_T.as<std::int32_t>(),
      op.tokens_T.as<std::int32_t>(),
      static_cast<int>(num_tokens));
  launch(embedding_backward_kernel<T, kWidth>,
         choose_backward_launch(num_tokens, width, kWidth, stream),
         op.dweight_VD.as<float>(),
         op.dy_TD.as<T>(),
         op.tokens_T.as<std::int32_t>(),
         static_cast<const std::int32_t*>(op.order_T.as<std::int32_t>()),
         num_tokens,
         width,
         Rows{.begin = op.vocab_begin, .count = op.dweight_VD.dim(0)},
         op.multiplier);
}

}  // namespace

void embedding_forward(const EmbeddingForward& op, Stream stream) {
  visit_gpu_float(op.y_TD.dtype, [&]<class T>() {
    if (op.y_TD.dim(1) % gpu::kVectorWidth<T> == 0) {
      launch_forward<T, gpu::kVectorWidth<T>>(op, stream);
    } else {
      launch_forward<T, 1>(op, stream);
    }
  });
}

void embedding_backward(const EmbeddingBackward& op, Stream stream) {
  constexpr int kWidth = gpu::kVectorWidth<float>;  // of what is added to, whatever dy is
  visit_gpu_float(op.dy_TD.dtype, [&]<class T>() {
    if (op.dy_TD.dim(1) % kWidth == 0) {
      launch_backward<T, kWidth>(op, stream);
    } else {
      launch_backward<T, 1>(op, stream);
    }
  });
}

}  // namespace memphis::kernels::cuda
