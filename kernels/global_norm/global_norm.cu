// SPDX-License-Identifier: Apache-2.0
//
// A block a run of the tensor, then one block over the runs: two launches, because no block may
// wait for another. Bound by bytes: a multiply-add for every 4. Eight blocks of 256 threads, at 32
// registers, ask for 128 KB on an SM.
#include "kernels/global_norm/global_norm.h"

#include <algorithm>
#include <cmath>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/or_null.h"

namespace memphis::kernels::cuda {
namespace {

using gpu::kWarpSize;

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;    // they fill it, and P counts on eight
constexpr int kLoads = 4;          // of a thread, in flight at once
constexpr int kSumThreads = 1024;  // of the one block there is
constexpr int kWidth = gpu::kVectorWidth<float>;

// gpu::block_sum in f64. All threads must call; each receives the sum.
__device__ double block_sum(double value, double* scratch) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    value += gpu::shuffle_xor(value, mask);
  }
  if (gpu::lane_id() == 0) {
    scratch[gpu::warp_id()] = value;
  }
  gpu::sync_threads();  // all partial sums are written
  const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  value = gpu::lane_id() < num_warps ? scratch[gpu::lane_id()] : 0.0;
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    value += gpu::shuffle_xor(value, mask);
  }
  return value;
}

// grid: P at most, block: kThreads, shared: none; requires run % kWidth == 0.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    squares_kernel(double* partial_P, const float* x_n, std::int64_t n, std::int64_t run) {
  __shared__ double scratch[kWarpSize];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * run;
  const std::int64_t end = begin + run < n ? begin + run : n;
  const std::int64_t end_of_vectors = end - (end - begin) % kWidth;
  float squares = 0.0F;
  for (std::int64_t i = begin + static_cast<std::int64_t>(threadIdx.x) * kWidth; i < end_of_vectors;
       i += kLoads * kThreads * kWidth) {
    float x[kLoads][kWidth] = {};
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const std::int64_t at = i + load * kThreads * kWidth;
      if (at < end_of_vectors) {
        gpu::load_floats(x_n + at, x[load]);
      }
    }
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      for (int j = 0; j < kWidth; ++j) {
        squares += x[load][j] * x[load][j];
      }
    }
  }
  if (end_of_vectors + threadIdx.x < end) {  // what is left is less than a vector
    const float x = x_n[end_of_vectors + threadIdx.x];
    squares += x * x;
  }
  const double total = block_sum(static_cast<double>(squares), scratch);
  if (threadIdx.x == 0) {
    partial_P[blockIdx.x] = total;
  }
}

// grid: 1, block: kSumThreads, shared: none.
__global__ void __launch_bounds__(kSumThreads)
    norm_kernel(float* norm_1, const double* partial_P, std::int64_t num_partials) {
  __shared__ double scratch[kWarpSize];
  double squares = 0.0;
  for (std::int64_t p = threadIdx.x; p < num_partials; p += kSumThreads) {
    squares += partial_P[p];
  }
  squares = block_sum(squares, scratch);
  if (threadIdx.x == 0) {
    norm_1[0] = static_cast<float>(sqrt(squares));
  }
}

// One block: these are the losses of a micro-batch, and a second launch would cost more than the
// sum.
//
// grid: 1, block: kSumThreads, shared: none. scale_1 may be null.
__global__ void __launch_bounds__(kSumThreads) sum_all_kernel(
    float* total_1, const float* x_n, std::int64_t n, const float* scale_1, bool accumulate) {
  __shared__ double scratch[kWarpSize];
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < n; i += kSumThreads) {
    sum += static_cast<double>(x_n[i]);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) {
    const double before = accumulate ? static_cast<double>(total_1[0]) : 0.0;
    const double scale = scale_1 == nullptr ? 1.0 : static_cast<double>(scale_1[0]);
    total_1[0] = static_cast<float>(before + scale * sum);
  }
}

Launch choose_launch(std::int64_t num_blocks, std::int64_t num_threads, Stream stream) {
  return {.grid = {.x = num_blocks}, .block = {.x = num_threads}, .stream = stream};
}

}  // namespace

void global_norm(const GlobalNorm& op, Stream stream) {
  const std::int64_t n = op.x_n.dim(0);
  // Whole vectors, so that every run starts on a 16-byte boundary, and one for each thread of a block
  // at least: a small tensor takes fewer blocks.
  const std::int64_t share = ceil_div(ceil_div(n, op.partial_P.dim(0)), kWidth) * kWidth;
  const std::int64_t run = std::max<std::int64_t>(share, kThreads * kWidth);
  const std::int64_t num_partials = std::max<std::int64_t>(ceil_div(n, run), 1);
  launch(squares_kernel,
         choose_launch(num_partials, kThreads, stream),
         op.partial_P.as<double>(),
         op.x_n.as<float>(),
         n,
         run);
  launch(norm_kernel,
         choose_launch(1, kSumThreads, stream),
         op.norm_1.as<float>(),
         op.partial_P.as<double>(),
         num_partials);
}

void sum_all(const SumAll& op, Stream stream) {
  launch(sum_all_kernel,
         choose_launch(1, kSumThreads, stream),
         op.total_1.as<float>(),
         op.x_n.as<float>(),
         op.x_n.dim(0),
         or_null<float>(op.scale_1),
         op.accumulate);
}

}  // namespace memphis::kernels::cuda
