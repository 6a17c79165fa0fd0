// SPDX-License-Identifier: Apache-2.0
//
// Forward: a block a row, neighbouring threads on neighbouring vectors of it. Backward: a block a
// position and 256 vectors of columns; it leaves at once unless the position is the first of its
// token, and otherwise alone sums all of them, so that nothing is added atomically. Both are bound
// by bytes.
#include "kernels/embedding/embedding.h"

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

// Besides the operands, each block reads tokens up to the first of its own kind or, if it is that,
// all of them: T * (distinct tokens) * 4 bytes at most for each cut of D, mostly from the L2 cache.
//
// grid: T x D / (kThreads * kWidth), block: kThreads, shared: none; requires D % kWidth == 0.
template <class T, int kWidth>
__global__ void embedding_backward_kernel(float* dweight_VD,
                                          const T* dy_TD,
                                          const std::int32_t* tokens_T,
                                          std::int64_t num_tokens,
                                          std::int64_t width,
                                          Rows rows,
                                          float multiplier) {
  // Two sets, taken in turn: one barrier a tile of positions is then enough.
  __shared__ unsigned votes[2][kWarps];
  const std::int64_t t = blockIdx.x;
  const std::int32_t token = tokens_T[t];
  const std::int64_t d = (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kWidth;
  const bool holds_columns = d < width;
  const std::int64_t row = token - rows.begin;
  if (row < 0 || row >= rows.count) {
    return;  // all threads: another rank has the token
  }
  float* const dweight = dweight_VD + row * width + d;
  float sum[kWidth] = {};

  int set = 0;
  for (std::int64_t tile = 0; tile < num_tokens; tile += kThreads) {
    // Vote: which positions of the tile hold this token?
    const std::int64_t mine = tile + threadIdx.x;
    const unsigned vote = gpu::ballot(mine < num_tokens && tokens_T[mine] == token);
    if (gpu::lane_id() == 0) {
      votes[set][gpu::warp_id()] = vote;
    }
    gpu::sync_threads();  // all votes are written, and those of the tile before are read

    // Sum them first to last. All threads see the same votes, so they leave together.
    for (int warp = 0; warp < kWarps; ++warp) {
      for (unsigned left = votes[set][warp]; left != 0; left &= left - 1) {
        const std::int64_t position = tile + warp * kWarpSize + gpu::lowest_bit(left);
        if (position < t) {
          return;
        }
        if (position == t && holds_columns) {
          load_floats(dweight, sum);
        }
        if (holds_columns) {
          float dy[kWidth];
          load_floats(dy_TD + position * width + d, dy);
          for (int i = 0; i < kWidth; ++i) {
            sum[i] += multiplier * dy[i];
          }
        }
      }
    }
    set = 1 - set;
  }
  if (holds_columns) {
    store_floats(dweight, sum);
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

Launch choose_backward_launch(std::int64_t num_tokens,
                              std::int64_t width,
                              int vector_width,
                              Stream stream) {
  return {.grid = {.x = num_tokens, .y = ceil_div(width, kThreads * vector_width)},
          .block = {.x = kThreads},
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
  launch(embedding_backward_kernel<T, kWidth>,
         choose_backward_launch(num_tokens, width, kWidth, stream),
         op.dweight_VD.as<float>(),
         op.dy_TD.as<T>(),
         op.tokens_T.as<std::int32_t>(),
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
  visit_gpu_float(op.dy_TD.dtype, [&]<class T>() {
    if (op.dy_TD.dim(1) % gpu::kVectorWidth<T> == 0) {
      launch_backward<T, gpu::kVectorWidth<T>>(op, stream);
    } else {
      launch_backward<T, 1>(op, stream);
    }
  });
}

}  // namespace memphis::kernels::cuda
