// SPDX-License-Identifier: Apache-2.0
//
// A block a row (forward) or a run of rows (backward), each thread every blockDim-th vector of it: a
// row is read from memory once for its sum and found in the L1 cache the second time (at D = 6144 in
// bf16, 12 KB forward and 24 KB backward). Where a norm follows, its row is the one that the same
// threads have just written. Bound by bytes: some 10 operations an element of 2 bytes.
#include "kernels/rmsnorm/rmsnorm.h"

#include <algorithm>
#include <cmath>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/or_null.h"
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

// Rows that are one behind the other in memory, and a norm's weight.
template <class T>
struct NormOfRows {
  T* y_TD;
  float* rrms_T;
  const float* weight_D;
};

// grid: T rows, block: whole warps, shared: none; requires D % kWidth == 0. next.y_TD is null where
// there is no next norm.
template <class T, int kWidth>
__global__ void rmsnorm_forward_kernel(NormOfRows<T> norm,
                                       NormOfRows<T> next,
                                       const T* x_TD,
                                       const T* residual_TD,
                                       std::int64_t width,
                                       float eps) {
  __shared__ float scratch[kWarpSize];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * width;
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kWidth;
  const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * kWidth;
  const bool has_next = next.y_TD != nullptr;

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
    norm.rrms_T[blockIdx.x] = rrms;
  }

  // Write, and reduce what is written, as it is stored.
  float next_squares = 0.0F;
  for (std::int64_t d = first; d < width; d += stride) {
    float x[kWidth];
    float weight[kWidth];
    float residual[kWidth] = {};
    load_floats(x_TD + row + d, x);
    load_floats(norm.weight_D + d, weight);
    if (residual_TD != nullptr) {
      load_floats(residual_TD + row + d, residual);
    }
    for (int i = 0; i < kWidth; ++i) {
      x[i] = x[i] * rrms * weight[i] + residual[i];
      const float stored = gpu::to_float(gpu::from_float<T>(x[i]));
      next_squares += stored * stored;
    }
    store_floats(norm.y_TD + row + d, x);
  }
  if (!has_next) {
    return;
  }
  next_squares = gpu::block_sum(next_squares, scratch);
  const float next_rrms = 1.0F / sqrtf(next_squares / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) {
    next.rrms_T[blockIdx.x] = next_rrms;
  }

  // Write the next norm's: a thread reads what it has written itself.
  for (std::int64_t d = first; d < width; d += stride) {
    float y[kWidth];
    float weight[kWidth];
    load_floats(norm.y_TD + row + d, y);
    load_floats(next.weight_D + d, weight);
    for (int i = 0; i < kWidth; ++i) {
      y[i] = y[i] * next_rrms * weight[i];
    }
    store_floats(next.y_TD + row + d, y);
  }
}

// What the gradient of a norm is made of.
template <class T>
struct GradientOfRows {
  float* partial_PD;
  const T* dy_TD;
  const T* x_TD;
  const float* weight_D;
  const float* rrms_T;
  bool accumulate;  // dx += instead of dx =
};

// Writes dx of row t, and adds its dy x r to `sums`. All threads of the block call it. They touch
// the same columns each time, so that a row that one call writes may be what the next one reads.
template <class T, int kWidth>
__device__ __forceinline__ void backward_row(T* dx_TD,
                                             float* sums,
                                             const GradientOfRows<T>& norm,
                                             std::int64_t t,
                                             std::int64_t width,
                                             float* scratch) {
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kWidth;
  const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * kWidth;
  const T* const dy_row = norm.dy_TD + t * width;
  const T* const x_row = norm.x_TD + t * width;

  // Reduce.
  float dot = 0.0F;
  for (std::int64_t d = first; d < width; d += stride) {
    float dy[kWidth];
    float x[kWidth];
    float weight[kWidth];
    load_floats(dy_row + d, dy);
    load_floats(x_row + d, x);
    load_floats(norm.weight_D + d, weight);
    for (int i = 0; i < kWidth; ++i) {
      dot += x[i] * (weight[i] * dy[i]);
    }
  }
  dot = gpu::block_sum(dot, scratch);
  const float rrms = norm.rrms_T[t];
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
    load_floats(norm.weight_D + d, weight);
    load_floats(sums + d, sum);
    if (norm.accumulate) {
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

// Writes dx of the run's rows, and the run's sum of dy x r to its row of partial_PD. Before each row
// the same of the next norm, whose dx is dy or added to it; next.x_TD is null where there is none.
//
// grid: runs, block: whole warps, shared: D floats for each norm; requires D % kWidth == 0.
template <class T, int kWidth>
__global__ void rmsnorm_backward_kernel(T* dx_TD,
                                        T* dy_TD,
                                        GradientOfRows<T> norm,
                                        GradientOfRows<T> next,
                                        std::int64_t num_tokens,
                                        std::int64_t width,
                                        std::int64_t run) {
  __shared__ float scratch[kWarpSize];
  float* const sums = gpu::dynamic_shared<float>();
  float* const next_sums = sums + width;
  const bool has_next = next.x_TD != nullptr;
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kWidth;
  const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * kWidth;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * run;
  const std::int64_t end = begin + run < num_tokens ? begin + run : num_tokens;

  // A thread touches the same columns of the sums throughout, so they need no barrier.
  for (std::int64_t d = first; d < width; d += stride) {
    const float zeros[kWidth] = {};
    store_floats(sums + d, zeros);
    if (has_next) {
      store_floats(next_sums + d, zeros);
    }
  }
  for (std::int64_t t = begin; t < end; ++t) {
    if (has_next) {
      backward_row<T, kWidth>(dy_TD, next_sums, next, t, width, scratch);
    }
    backward_row<T, kWidth>(dx_TD, sums, norm, t, width, scratch);
  }
  const std::int64_t to = static_cast<std::int64_t>(blockIdx.x) * width;
  for (std::int64_t d = first; d < width; d += stride) {
    float sum[kWidth];
    load_floats(sums + d, sum);
    store_floats(norm.partial_PD + to + d, sum);
    if (has_next) {
      load_floats(next_sums + d, sum);
      store_floats(next.partial_PD + to + d, sum);
    }
  }
}

// Sums the runs: a block takes 32 columns, its warps every 32nd run of them.
//
// grid: D / 32, block: 32 warps, shared: none.
__global__ void __launch_bounds__(32 * kWarpSize) rmsnorm_dweight_kernel(float* dweight_D,
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

Launch choose_backward_launch(
    std::int64_t num_runs, std::int64_t width, int num_norms, int vector_width, Stream stream) {
  return {.grid = {.x = num_runs},
          .block = {.x = whole_warps(ceil_div(width, vector_width), kBackwardThreads)},
          .shared_bytes = static_cast<std::size_t>(num_norms * width) * sizeof(float),
          .stream = stream};
}

template <class T, int kWidth>
void launch_forward(const RmsNormForward& op, Stream stream) {
  const std::int64_t width = op.x_TD.dim(1);
  const NormOfRows<T> norm = {.y_TD = op.y_TD.as<T>(),
                              .rrms_T = op.rrms_T.as<float>(),
                              .weight_D = op.weight_D.as<float>()};
  const NormOfRows<T> next = {.y_TD = or_null<T>(op.next.y_TD),
                              .rrms_T = or_null<float>(op.next.rrms_T),
                              .weight_D = or_null<float>(op.next.weight_D)};
  launch(rmsnorm_forward_kernel<T, kWidth>,
         choose_forward_launch(op.x_TD.dim(0), width, kWidth, stream),
         norm,
         next,
         static_cast<const T*>(op.x_TD.as<T>()),
         static_cast<const T*>(or_null<T>(op.residual_TD)),
         width,
         op.eps);
}

void launch_dweight(const TensorView& dweight_D,
                    const TensorView& partial_PD,
                    std::int64_t num_runs,
                    WeightGradient weight_gradient,
                    Stream stream) {
  const std::int64_t width = dweight_D.dim(0);
  launch(rmsnorm_dweight_kernel,
         {.grid = {.x = ceil_div(width, kWarpSize)},
          .block = {.x = kWarpSize * kWarpSize},
          .stream = stream},
         dweight_D.as<float>(),
         static_cast<const float*>(partial_PD.as<float>()),
         num_runs,
         width,
         weight_gradient == WeightGradient::add);
}

template <class T, int kWidth>
void launch_backward(const RmsNormBackward& op, Stream stream) {
  const std::int64_t num_tokens = op.x_TD.dim(0);
  const std::int64_t width = op.x_TD.dim(1);
  const std::int64_t run = std::max<std::int64_t>(1, ceil_div(num_tokens, op.partial_PD.dim(0)));
  const std::int64_t num_runs = ceil_div(num_tokens, run);
  const bool has_next = op.next.x_TD.present();
  const GradientOfRows<T> norm = {.partial_PD = op.partial_PD.as<float>(),
                                  .dy_TD = op.dy_TD.as<T>(),
                                  .x_TD = op.x_TD.as<T>(),
                                  .weight_D = op.weight_D.as<float>(),
                                  .rrms_T = op.rrms_T.as<float>(),
                                  .accumulate = op.accumulate};
  const GradientOfRows<T> next = {.partial_PD = or_null<float>(op.next.partial_PD),
                                  .dy_TD = or_null<T>(op.next.dy_TD),
                                  .x_TD = or_null<T>(op.next.x_TD),
                                  .weight_D = or_null<float>(op.next.weight_D),
                                  .rrms_T = or_null<float>(op.next.rrms_T),
                                  .accumulate = op.next.accumulate};
  launch(rmsnorm_backward_kernel<T, kWidth>,
         choose_backward_launch(num_runs, width, has_next ? 2 : 1, kWidth, stream),
         op.dx_TD.as<T>(),
         op.dy_TD.as<T>(),
         norm,
         next,
         num_tokens,
         width,
         run);
  launch_dweight(op.dweight_D, op.partial_PD, num_runs, op.weight_gradient, stream);
  if (has_next) {
    launch_dweight(op.next.dweight_D, op.next.partial_PD, num_runs, op.weight_gradient, stream);
  }
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
  const std::int64_t most = op.next.x_TD.present() ? kMaxBackwardWidth / 2 : kMaxBackwardWidth;
  require(width <= kMaxBackwardWidth,
          "rmsnorm_backward: D is " + std::to_string(width) +
              " (a block keeps a row of f32 in shared memory); use a D of at most " +
              std::to_string(kMaxBackwardWidth));
  if (width > most) {  // one norm after the other
    cuda::rmsnorm_backward(RmsNormBackward{.dx_TD = op.dy_TD,
                                           .dweight_D = op.next.dweight_D,
                                           .dy_TD = op.next.dy_TD,
                                           .x_TD = op.next.x_TD,
                                           .weight_D = op.next.weight_D,
                                           .rrms_T = op.next.rrms_T,
                                           .partial_PD = op.next.partial_PD,
                                           .accumulate = op.next.accumulate,
                                           .weight_gradient = op.weight_gradient},
                           stream);
    RmsNormBackward alone = op;
    alone.next = {};
    return cuda::rmsnorm_backward(alone, stream);
  }
  visit_gpu_float(op.dx_TD.dtype, [&]<class T>() {
    if (width % gpu::kVectorWidth<T> == 0) {
      launch_backward<T, gpu::kVectorWidth<T>>(op, stream);
    } else {
      launch_backward<T, 1>(op, stream);
    }
  });
}

}  // namespace memphis::kernels::cuda
