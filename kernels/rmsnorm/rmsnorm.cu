// SPDX-License-Identifier: Apache-2.0
//
// A block a row (forward) or a run of rows (backward), each thread every blockDim-th vector of it:
// a row is read from memory once for its sum and found in the L1 cache the second time (at D = 6144
// in bf16, 12 KB forward and 24 KB backward). Bound by bytes: some 10 operations an element of 2
// bytes.
#include "kernels/rmsnorm/rmsnorm.h"

#include <algorithm>
#include <cmath>

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

// Eight blocks on an SM cover each other's barriers.
constexpr std::int64_t kForwardThreads = 256;
// P is two blocks an SM, so a block takes as many threads as its row has vectors. At 40 registers
// two blocks of up to 800 threads are resident, at D = 6144 in bf16 768 each.
constexpr std::int64_t kBackwardThreads = 1024;
// A block of the backward pass keeps f32 sums of all columns in shared memory: 96 KiB, which every
// device from sm_80 on has.
constexpr std::int64_t kMaxBackwardWidth = 24576;

// grid: T rows, block: whole warps, shared: none; requires D % kWidth == 0.
template <class T, int kWidth>
__global__ void rmsnorm_forward_kernel(T* y_TD,
                                       float* rrms_T,
                                       const T* x_TD,
                                       const float* weight_D,
                                       const T* residual_TD,
                                       std::int64_t width,
                                       float eps) {
  __shared__ float scratch[kWarpSize];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * width;
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kWidth;
  const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * kWidth;

  // Reduce.
  float squares = 0.0F;
  for (std::int64_t d = first; d < width; d += stride) {
    float x[kWidth];
    load_floats(x_TD + row + d, x);
    for (int i = 0; i < kWidth; ++i) {
      squares += x[i] * x[i];
    }
  }
  squares = gpu::block_sum(squares, scratch);
  const float rrms = 1.0F / sqrtf(squares / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) {
    rrms_T[blockIdx.x] = rrms;
  }

  // Write.
  for (std::int64_t d = first; d < width; d += stride) {
    float x[kWidth];
    float weight[kWidth];
    float residual[kWidth] = {};
    load_floats(x_TD + row + d, x);
    load_floats(weight_D + d, weight);
    if (residual_TD != nullptr) {
      load_floats(residual_TD + row + d, residual);
    }
    for (int i = 0; i < kWidth; ++i) {
      x[i] = x[i] * rrms * weight[i] + residual[i];
    }
    store_floats(y_TD + row + d, x);
  }
}

// Writes dx of the run's rows, and the run's sum of dy x r to its row of partial_PD.
//
// grid: runs, block: whole warps, shared: D floats; requires D % kWidth == 0.
template <class T, int kWidth>
__global__ void rmsnorm_backward_kernel(T* dx_TD,
                                        float* partial_PD,
                                        const T* dy_TD,
                                        const T* x_TD,
                                        const float* weight_D,
                                        const float* rrms_T,
                                        std::int64_t num_tokens,
                                        std::int64_t width,
                                        std::int64_t run,
                                        bool accumulate) {
  __shared__ float scratch[kWarpSize];
  float* const sums = gpu::dynamic_shared<float>();
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kWidth;
  const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * kWidth;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * run;
  const std::int64_t end = begin + run < num_tokens ? begin + run : num_tokens;

  // A thread touches the same columns of `sums` throughout, so they need no barrier.
  for (std::int64_t d = first; d < width; d += stride) {
    const float zeros[kWidth] = {};
    store_floats(sums + d, zeros);
  }

  for (std::int64_t t = begin; t < end; ++t) {
    const T* const dy_row = dy_TD + t * width;
    const T* const x_row = x_TD + t * width;

    // Reduce.
    float dot = 0.0F;
    for (std::int64_t d = first; d < width; d += stride) {
      float dy[kWidth];
      float x[kWidth];
      float weight[kWidth];
      load_floats(dy_row + d, dy);
      load_floats(x_row + d, x);
      load_floats(weight_D + d, weight);
      for (int i = 0; i < kWidth; ++i) {
        dot += x[i] * (weight[i] * dy[i]);
      }
    }
    dot = gpu::block_sum(dot, scratch);
    const float rrms = rrms_T[t];
    const float pull = rrms * rrms * rrms * (dot / static_cast<float>(width));

    // Write.
    for (std::int64_t d = first; d < width; d += stride) {
      float dy[kWidth];
      float x[kWidth];
      float weight[kWidth];
      float sum[kWidth];
      float dx[kWidth] = {};
      load_floats(dy_row + d, dy);
      load_floats(x_row + d, x);
      load_floats(weight_D + d, weight);
      load_floats(sums + d, sum);
      if (accumulate) {
        load_floats(dx_TD + t * width + d, dx);
      }
      for (int i = 0; i < kWidth; ++i) {
        dx[i] += rrms * (weight[i] * dy[i]) - x[i] * pull;
        sum[i] += dy[i] * (x[i] * rrms);
      }
      store_floats(dx_TD + t * width + d, dx);
      store_floats(sums + d, sum);
    }
  }

  for (std::int64_t d = first; d < width; d += stride) {
    float sum[kWidth];
    load_floats(sums + d, sum);
    store_floats(partial_PD + static_cast<std::int64_t>(blockIdx.x) * width + d, sum);
  }
}

// Sums the runs: a block takes 32 columns, its warps every 32nd run of them.
//
// grid: D / 32, block: 32 warps, shared: none.
__global__ void rmsnorm_dweight_kernel(float* dweight_D,
                                       const float* partial_PD,
                                       std::int64_t num_runs,
                                       std::int64_t width,
                                       bool add) {
  // One more column than it holds, so that reading it transposed meets no bank twice.
  __shared__ float sums[kWarpSize][kWarpSize + 1];
  const int lane = gpu::lane_id();
  const int warp = gpu::warp_id();
  const std::int64_t first_column = static_cast<std::int64_t>(blockIdx.x) * kWarpSize;
  float sum = 0.0F;
  if (first_column + lane < width) {
    for (std::int64_t run = warp; run < num_runs; run += kWarpSize) {
      sum += partial_PD[run * width + first_column + lane];
    }
  }
  sums[warp][lane] = sum;
  gpu::sync_threads();  // the sums of all warps are written

  const float total = gpu::warp_sum(sums[lane][warp]);
  if (lane == 0 && first_column + warp < width) {
    float* const dweight = dweight_D + first_column + warp;
    *dweight = add ? *dweight + total : total;
  }
}

Launch choose_forward_launch(std::int64_t num_tokens,
                             std::int64_t width,
                             int vector_width,
                             Stream stream) {
  return {.grid = {.x = num_tokens},
          .block = {.x = whole_warps(ceil_div(width, vector_width), kForwardThreads)},
          .stream = stream};
}

Launch choose_backward_launch(std::int64_t num_runs,
                              std::int64_t width,
                              int vector_width,
                              Stream stream) {
  return {.grid = {.x = num_runs},
          .block = {.x = whole_warps(ceil_div(width, vector_width), kBackwardThreads)},
          .shared_bytes = static_cast<std::size_t>(width) * sizeof(float),
          .stream = stream};
}

template <class T, int kWidth>
void launch_forward(const RmsNormForward& op, Stream stream) {
  const std::int64_t width = op.x_TD.dim(1);
  launch(rmsnorm_forward_kernel<T, kWidth>,
         choose_forward_launch(op.x_TD.dim(0), width, kWidth, stream),
         op.y_TD.as<T>(),
         op.rrms_T.as<float>(),
         op.x_TD.as<T>(),
         op.weight_D.as<float>(),
         op.residual_TD.present() ? op.residual_TD.as<T>() : nullptr,
         width,
         op.eps);
}

template <class T, int kWidth>
void launch_backward(const RmsNormBackward& op, Stream stream) {
  const std::int64_t num_tokens = op.x_TD.dim(0);
  const std::int64_t width = op.x_TD.dim(1);
  const std::int64_t run = std::max<std::int64_t>(1, ceil_div(num_tokens, op.partial_PD.dim(0)));
  const std::int64_t num_runs = ceil_div(num_tokens, run);
  launch(rmsnorm_backward_kernel<T, kWidth>,
         choose_backward_launch(num_runs, width, kWidth, stream),
         op.dx_TD.as<T>(),
         op.partial_PD.as<float>(),
         op.dy_TD.as<T>(),
         op.x_TD.as<T>(),
         op.weight_D.as<float>(),
         op.rrms_T.as<float>(),
         num_tokens,
         width,
         run,
         op.accumulate);
  launch(rmsnorm_dweight_kernel,
         {.grid = {.x = ceil_div(width, kWarpSize)},
          .block = {.x = kWarpSize * kWarpSize},
          .stream = stream},
         op.dweight_D.as<float>(),
         op.partial_PD.as<float>(),
         num_runs,
         width,
         op.weight_gradient == WeightGradient::add);
}

}  // namespace

void rmsnorm_forward(const RmsNormForward& op, Stream stream) {
  visit_gpu_float(op.y_TD.dtype, [&]<class T>() {
    if (op.y_TD.dim(1) % gpu::kVectorWidth<T> == 0) {
      launch_forward<T, gpu::kVectorWidth<T>>(op, stream);
    } else {
      launch_forward<T, 1>(op, stream);
    }
  });
}

void rmsnorm_backward(const RmsNormBackward& op, Stream stream) {
  const std::int64_t width = op.dx_TD.dim(1);
  require(width <= kMaxBackwardWidth,
          "rmsnorm_backward: D is " + std::to_string(width) +
              " (a block keeps a row of f32 in shared memory); use a D of at most " +
              std::to_string(kMaxBackwardWidth));
  visit_gpu_float(op.dx_TD.dtype, [&]<class T>() {
    if (width % gpu::kVectorWidth<T> == 0) {
      launch_backward<T, gpu::kVectorWidth<T>>(op, stream);
    } else {
      launch_backward<T, 1>(op, stream);
    }
  });
}

}  // namespace memphis::kernels::cuda
