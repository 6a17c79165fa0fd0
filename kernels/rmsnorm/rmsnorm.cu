// SPDX-License-Identifier: Apache-2.0
//
// A block a row (forward) or a run of rows (backward). A thread has the same columns throughout and
// keeps its vectors of a row in registers from the sum to the write, so that all that is read is
// read once. Bound by bytes, some 10 operations an element of 2 bytes:
//
// Forward: a thread's four vectors of a row, and of the residual's, are asked for at once. At
// D = 6144 in bf16 five blocks of 192 threads, at 64 registers, have 60 KB of x in flight on an SM,
// and while one is at a barrier others are not.
//
// Backward: the weight and the sums of its gradient lie in registers as well, and a row is on its
// way while the one before it is reduced and written: at D = 6144 one block of 768 threads, at 64
// registers, has 24 KB in flight on an SM (36 KB where it adds to dx), at D = 3072 two blocks of
// 384. With a next norm, at 80 registers, the row of one norm is on its way while the other's is
// reduced.
//
// Rows that are not whole vectors, or more than the registers hold, have kernels of their own: they
// read a row twice, the second time from the L1 cache.
//
//   kernel                              rows                       a thread keeps
//   rmsnorm_forward_kernel              up to 4096 whole vectors   4 vectors of the row
//   rmsnorm_forward_any_width_kernel    any                        nothing
//   rmsnorm_backward_kernel             up to 1024 whole vectors   1 of dy, x, dx; as many f32 of
//                                       (768 with a next norm)     the weight and of its sums
//   rmsnorm_backward_any_width_kernel   D up to 24576, no next     nothing: sums in shared memory
//   rmsnorm_dweight_kernel              sums of runs               one sum
//
// A vector is of 16 bytes.
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

using gpu::kVectorWidth;
using gpu::kWarpSize;
using gpu::load_floats;
using gpu::load_packed;
using gpu::Packed;
using gpu::store_floats;
using gpu::store_packed;

constexpr int kMaxThreads = 1024;
// Vectors of a row that a thread of the forward pass has. In bf16 a warp then has 1024 columns.
constexpr int kForwardVectors = 4;
// Eight blocks on an SM cover each other's barriers.
constexpr std::int64_t kAnyWidthForwardThreads = 256;
// A thread of the backward pass has one vector of a row, and as many registers as these leave it:
// 64, or 80 with a next norm.
template <bool kHasNext>
constexpr int kMaxBackwardThreads = kHasNext ? 768 : kMaxThreads;
// A block of rows of any width keeps f32 sums of all columns in shared memory: 96 KiB, which every
// device from sm_80 on has.
constexpr std::int64_t kMaxBackwardWidth = 24576;

// Rows that are one behind the other in memory, and a norm's weight.
template <class T>
struct NormOfRows {
  T* y_TD;
  float* rrms_T;
  const float* weight_D;
};

// 1 / rms of a row of which each thread has the squares of some columns. All threads of the block
// call it.
__device__ __forceinline__ float row_rrms(float squares,
                                          std::int64_t width,
                                          float eps,
                                          float* scratch) {
  squares = gpu::block_sum(squares, scratch);
  return 1.0F / sqrtf(squares / static_cast<float>(width) + eps);
}

// The sum of squares of what a thread has of a row, zeros where it ends.
template <class T>
__device__ __forceinline__ float sum_squares(const Packed<T> (&row)[kForwardVectors]) {
  float squares = 0.0F;
#pragma unroll
  for (int v = 0; v < kForwardVectors; ++v) {
    float x[kVectorWidth<T>];
    gpu::unpack(row[v], x);
    for (int i = 0; i < kVectorWidth<T>; ++i) {
      squares += x[i] * x[i];
    }
  }
  return squares;
}

// grid: T rows, block: whole warps, D / (kForwardVectors * kVectorWidth<T>) threads at least,
// shared: none; requires D % kVectorWidth<T> == 0. residual_TD may be null.
template <class T, bool kHasNext>
__global__ void __launch_bounds__(kMaxThreads) rmsnorm_forward_kernel(NormOfRows<T> norm,
                                                                      NormOfRows<T> next,
                                                                      const T* x_TD,
                                                                      const T* residual_TD,
                                                                      int width,
                                                                      float eps) {
  __shared__ float scratch[kWarpSize];
  constexpr int kWidth = kVectorWidth<T>;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * width;
  const int first = static_cast<int>(threadIdx.x) * kWidth;
  const int stride = static_cast<int>(blockDim.x) * kWidth;
  const bool has_residual = residual_TD != nullptr;

  // Load.
  Packed<T> x[kForwardVectors] = {};
  Packed<T> residual[kForwardVectors] = {};
#pragma unroll
  for (int v = 0; v < kForwardVectors; ++v) {
    const int d = first + v * stride;
    if (d < width) {
      x[v] = load_packed(x_TD + row + d);
      if (has_residual) {
        residual[v] = load_packed(residual_TD + row + d);
      }
    }
  }

  // Reduce.
  const float rrms = row_rrms(sum_squares(x), width, eps, scratch);
  if (threadIdx.x == 0) {
    norm.rrms_T[blockIdx.x] = rrms;
  }

  // Write, and keep what is written, as it is stored, in the place of x.
#pragma unroll
  for (int v = 0; v < kForwardVectors; ++v) {
    const int d = first + v * stride;
    if (d < width) {
      float y[kWidth];
      float added[kWidth];
      float weight[kWidth];
      gpu::unpack(x[v], y);
      gpu::unpack(residual[v], added);
      load_floats(norm.weight_D + d, weight);
      for (int i = 0; i < kWidth; ++i) {
        y[i] = y[i] * rrms * weight[i] + added[i];
      }
      x[v] = gpu::pack<T>(y);
      store_packed(norm.y_TD + row + d, x[v]);
    }
  }
  if constexpr (kHasNext) {
    // Reduce and write the next norm's.
    const float next_rrms = row_rrms(sum_squares(x), width, eps, scratch);
    if (threadIdx.x == 0) {
      next.rrms_T[blockIdx.x] = next_rrms;
    }
#pragma unroll
    for (int v = 0; v < kForwardVectors; ++v) {
      const int d = first + v * stride;
      if (d < width) {
        float y[kWidth];
        float weight[kWidth];
        gpu::unpack(x[v], y);
        load_floats(next.weight_D + d, weight);
        for (int i = 0; i < kWidth; ++i) {
          y[i] = y[i] * next_rrms * weight[i];
        }
        store_floats(next.y_TD + row + d, y);
      }
    }
  }
}

// The same, an element at a time. next.y_TD is null where there is no next norm.
//
// grid: T rows, block: whole warps, shared: none.
template <class T>
__global__ void rmsnorm_forward_any_width_kernel(NormOfRows<T> norm,
                                                 NormOfRows<T> next,
                                                 const T* x_TD,
                                                 const T* residual_TD,
                                                 std::int64_t width,
                                                 float eps) {
  __shared__ float scratch[kWarpSize];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * width;

  // Reduce.
  float squares = 0.0F;
  for (std::int64_t d = threadIdx.x; d < width; d += blockDim.x) {
    const float x = gpu::to_float(x_TD[row + d]);
    squares += x * x;
  }
  const float rrms = row_rrms(squares, width, eps, scratch);
  if (threadIdx.x == 0) {
    norm.rrms_T[blockIdx.x] = rrms;
  }

  // Write, and reduce what is written, as it is stored.
  float next_squares = 0.0F;
  for (std::int64_t d = threadIdx.x; d < width; d += blockDim.x) {
    const float residual = residual_TD == nullptr ? 0.0F : gpu::to_float(residual_TD[row + d]);
    const float y = gpu::to_float(x_TD[row + d]) * rrms * norm.weight_D[d] + residual;
    norm.y_TD[row + d] = gpu::from_float<T>(y);
    const float stored = gpu::to_float(gpu::from_float<T>(y));
    next_squares += stored * stored;
  }
  if (next.y_TD == nullptr) {
    return;
  }
  const float next_rrms = row_rrms(next_squares, width, eps, scratch);
  if (threadIdx.x == 0) {
    next.rrms_T[blockIdx.x] = next_rrms;
  }

  // Write the next norm's: a thread reads what it has written itself.
  for (std::int64_t d = threadIdx.x; d < width; d += blockDim.x) {
    const float y = gpu::to_float(norm.y_TD[row + d]);
    next.y_TD[row + d] = gpu::from_float<T>(y * next_rrms * next.weight_D[d]);
  }
}

// What the gradient of a norm is made of, and where it goes.
template <class T>
struct GradientOfRows {
  T* dx_TD;
  float* partial_PD;
  const T* dy_TD;
  const T* x_TD;
  const float* weight_D;
  const float* rrms_T;
  bool accumulate;  // dx += instead of dx =
};

// With s = r dy, the scaled dy: dx = g s - x r^2 mean(x g s) and dweight = sum s x. Three steps at
// some columns of a row: r is known before the mean, so that dy need not be kept.
template <int kWidth>
__device__ __forceinline__ void scale(float (&dy)[kWidth], float rrms) {
  for (int i = 0; i < kWidth; ++i) {
    dy[i] *= rrms;
  }
}

template <int kWidth>
__device__ __forceinline__ void add_dot(float& dot,
                                        const float (&scaled_dy)[kWidth],
                                        const float (&x)[kWidth],
                                        const float (&weight)[kWidth]) {
  for (int i = 0; i < kWidth; ++i) {
    dot += x[i] * (weight[i] * scaled_dy[i]);
  }
}

// `pull` is the r^2 mean(x g s) of the row.
template <int kWidth>
__device__ __forceinline__ void add_gradients(float (&dx)[kWidth],
                                              float (&sums)[kWidth],
                                              const float (&scaled_dy)[kWidth],
                                              const float (&x)[kWidth],
                                              const float (&weight)[kWidth],
                                              float pull) {
  for (int i = 0; i < kWidth; ++i) {
    dx[i] = dx[i] + weight[i] * scaled_dy[i] - x[i] * pull;
    sums[i] += scaled_dy[i] * x[i];
  }
}

// What a thread has of a norm: its columns of the weight, of the weight's gradient over the rows so
// far, and of one row. All are zero where the row has ended before the thread's columns.
template <class T>
struct Columns {
  float weight[kVectorWidth<T>];
  float sums[kVectorWidth<T>];
};
template <class T>
struct RowOfColumns {
  Packed<T> dy;
  Packed<T> x;
  Packed<T> dx;  // zero, or what is added to
  float rrms;
};

__device__ __forceinline__ int rows_of_run(std::int64_t num_tokens, std::int64_t run) {
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * run;
  return static_cast<int>(begin + run < num_tokens ? run : num_tokens - begin);
}

// `norm` of the block's run: its first row is row 0.
template <class T>
__device__ __forceinline__ GradientOfRows<T> of_run(const GradientOfRows<T>& norm,
                                                    std::int64_t run,
                                                    std::int64_t width) {
  const std::int64_t block = blockIdx.x;
  return {.dx_TD = norm.dx_TD + block * run * width,
          .partial_PD = norm.partial_PD + block * width,
          .dy_TD = norm.dy_TD + block * run * width,
          .x_TD = norm.x_TD + block * run * width,
          .weight_D = norm.weight_D,
          .rrms_T = norm.rrms_T + block * run,
          .accumulate = norm.accumulate};
}

template <class T>
__device__ __forceinline__ int first_column() {
  return static_cast<int>(threadIdx.x) * kVectorWidth<T>;
}

template <class T>
__device__ __forceinline__ Columns<T> load_columns(const GradientOfRows<T>& norm, int width) {
  Columns<T> columns = {};
  if (first_column<T>() < width) {
    load_floats(norm.weight_D + first_column<T>(), columns.weight);
  }
  return columns;
}

// Asks for row t, where the run has one. A thread without columns reads no rrms either: what all
// threads read goes to a uniform register, for which a warp waits at once.
template <bool kReadsDy, class T>
__device__ __forceinline__ void load_row(
    RowOfColumns<T>& row, const GradientOfRows<T>& norm, int t, int num_rows, int width) {
  if (first_column<T>() < width && t < num_rows) {
    const std::int64_t at = static_cast<std::int64_t>(t) * width + first_column<T>();
    if constexpr (kReadsDy) {
      row.dy = load_packed(norm.dy_TD + at);
    }
    row.x = load_packed(norm.x_TD + at);
    if (norm.accumulate) {
      row.dx = load_packed(norm.dx_TD + at);
    }
    row.rrms = norm.rrms_T[t];
  }
}

// Writes dx of row t and returns it as it is stored. All threads of the block call it.
template <class T>
__device__ __forceinline__ Packed<T> backward_row(Columns<T>& columns,
                                                  const RowOfColumns<T>& row,
                                                  const GradientOfRows<T>& norm,
                                                  int t,
                                                  int width,
                                                  float* scratch) {
  float dy[kVectorWidth<T>];
  float x[kVectorWidth<T>];
  float dx[kVectorWidth<T>];
  gpu::unpack(row.dy, dy);
  gpu::unpack(row.x, x);
  gpu::unpack(row.dx, dx);

  // Reduce. The factor is formed once for all rows: a quotient a row is a call, and its registers.
  const float inverse_width = 1.0F / static_cast<float>(width);
  float dot = 0.0F;
  scale(dy, row.rrms);
  add_dot(dot, dy, x, columns.weight);
  dot = gpu::block_sum(dot, scratch);

  // Write.
  const float pull = row.rrms * row.rrms * (dot * inverse_width);
  add_gradients(dx, columns.sums, dy, x, columns.weight, pull);
  const Packed<T> stored = gpu::pack<T>(dx);
  if (first_column<T>() < width) {
    const std::int64_t at = static_cast<std::int64_t>(t) * width + first_column<T>();
    store_packed(norm.dx_TD + at, stored);
  }
  return stored;
}

// Writes dx of the run's rows, and the run's sum of dy x r to its row of partial_PD. Before each
// row the same of the next norm, whose dx is this one's dy.
//
// grid: runs, block: whole warps, D / kVectorWidth<T> threads at least, shared: none; requires
// D % kVectorWidth<T> == 0.
template <class T, bool kHasNext>
__global__ void __launch_bounds__(kMaxBackwardThreads<kHasNext>)
    rmsnorm_backward_kernel(GradientOfRows<T> norm_of_all,
                            GradientOfRows<T> next_of_all,
                            std::int64_t num_tokens,
                            int width,
                            std::int64_t run) {
  __shared__ float scratch[kWarpSize];
  const int num_rows = rows_of_run(num_tokens, run);
  const GradientOfRows<T> norm = of_run(norm_of_all, run, width);
  Columns<T> columns = load_columns(norm, width);
  RowOfColumns<T> row = {};
  load_row<!kHasNext>(row, norm, 0, num_rows, width);

  if constexpr (kHasNext) {
    const GradientOfRows<T> next = of_run(next_of_all, run, width);
    Columns<T> next_columns = load_columns(next, width);
    RowOfColumns<T> next_row = {};
    load_row<true>(next_row, next, 0, num_rows, width);
    for (int t = 0; t < num_rows; ++t) {
      row.dy = backward_row(next_columns, next_row, next, t, width, scratch);
      load_row<true>(next_row, next, t + 1, num_rows, width);  // while the other is reduced
      backward_row(columns, row, norm, t, width, scratch);
      load_row<false>(row, norm, t + 1, num_rows, width);  // while the next norm's is
    }
    if (first_column<T>() < width) {
      store_floats(next.partial_PD + first_column<T>(), next_columns.sums);
    }
  } else {
    for (int t = 0; t < num_rows; ++t) {
      const RowOfColumns<T> here = row;
      load_row<true>(row, norm, t + 1, num_rows, width);  // while this one is reduced
      backward_row(columns, here, norm, t, width, scratch);
    }
  }
  if (first_column<T>() < width) {
    store_floats(norm.partial_PD + first_column<T>(), columns.sums);
  }
}

// The same, without a next norm: the sums lie in shared memory.
//
// grid: runs, block: whole warps, shared: D floats; requires D % kWidth == 0.
template <class T, int kWidth>
__global__ void __launch_bounds__(kMaxThreads) rmsnorm_backward_any_width_kernel(
    GradientOfRows<T> norm_of_all, std::int64_t num_tokens, std::int64_t width, std::int64_t run) {
  __shared__ float scratch[kWarpSize];
  float* const sums = gpu::dynamic_shared<float>();
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kWidth;
  const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * kWidth;
  const int num_rows = rows_of_run(num_tokens, run);
  const GradientOfRows<T> norm = of_run(norm_of_all, run, width);
  const float inverse_width = 1.0F / static_cast<float>(width);

  // A thread touches the same columns of the sums throughout, so they need no barrier.
  for (std::int64_t d = first; d < width; d += stride) {
    const float zeros[kWidth] = {};
    store_floats(sums + d, zeros);
  }
  for (int t = 0; t < num_rows; ++t) {
    const std::int64_t row = t * width;
    const float rrms = norm.rrms_T[t];

    // Reduce.
    float dot = 0.0F;
    for (std::int64_t d = first; d < width; d += stride) {
      float dy[kWidth];
      float x[kWidth];
      float weight[kWidth];
      load_floats(norm.dy_TD + row + d, dy);
      load_floats(norm.x_TD + row + d, x);
      load_floats(norm.weight_D + d, weight);
      scale(dy, rrms);
      add_dot(dot, dy, x, weight);
    }
    dot = gpu::block_sum(dot, scratch);

    // Write.
    const float pull = rrms * rrms * (dot * inverse_width);
    for (std::int64_t d = first; d < width; d += stride) {
      float dy[kWidth];
      float x[kWidth];
      float weight[kWidth];
      float sum[kWidth];
      float dx[kWidth] = {};
      load_floats(norm.dy_TD + row + d, dy);
      load_floats(norm.x_TD + row + d, x);
      load_floats(norm.weight_D + d, weight);
      load_floats(sums + d, sum);
      if (norm.accumulate) {
        load_floats(norm.dx_TD + row + d, dx);
      }
      scale(dy, rrms);
      add_gradients(dx, sum, dy, x, weight, pull);
      store_floats(norm.dx_TD + row + d, dx);
      store_floats(sums + d, sum);
    }
  }
  for (std::int64_t d = first; d < width; d += stride) {
    float sum[kWidth];
    load_floats(sums + d, sum);
    store_floats(norm.partial_PD + d, sum);
  }
}

// The gradient of a norm's weight, and the sums of the runs that it is made of.
struct RunsOfWeight {
  float* dweight_D;
  const float* partial_PD;
};

// Sums the runs: a block takes 32 columns of one norm, its warps every 32nd run of them.
//
// grid: D / 32, norms; block: 32 warps, shared: none.
__global__ void __launch_bounds__(32 * kWarpSize) rmsnorm_dweight_kernel(
    RunsOfWeight norm, RunsOfWeight next, std::int64_t num_runs, std::int64_t width, bool add) {
  // One more column than it holds, so that reading it transposed meets no bank twice.
  __shared__ float sums[kWarpSize][kWarpSize + 1];
  const RunsOfWeight runs = blockIdx.y == 0 ? norm : next;
  const int lane = gpu::lane_id();
  const int warp = gpu::warp_id();
  const std::int64_t first_column = static_cast<std::int64_t>(blockIdx.x) * kWarpSize;
  float sum = 0.0F;
  if (first_column + lane < width) {
    for (std::int64_t run = warp; run < num_runs; run += kWarpSize) {
      sum += runs.partial_PD[run * width + first_column + lane];
    }
  }
  sums[warp][lane] = sum;
  gpu::sync_threads();  // the sums of all warps are written

  const float total = gpu::warp_sum(sums[lane][warp]);
  if (lane == 0 && first_column + warp < width) {
    float* const dweight = runs.dweight_D + first_column + warp;
    *dweight = add ? *dweight + total : total;
  }
}

// Whether a row is whole vectors, and no more than a block's threads hold of so many each.
template <class T>
bool fits(std::int64_t width, std::int64_t vectors_of_thread, std::int64_t max_threads) {
  return width % kVectorWidth<T> == 0 && width <= max_threads * vectors_of_thread * kVectorWidth<T>;
}

Launch choose_launch(std::int64_t num_blocks,
                     std::int64_t width,
                     std::int64_t columns_of_thread,
                     std::int64_t max_threads,
                     Stream stream) {
  return {.grid = {.x = num_blocks},
          .block = {.x = whole_warps(ceil_div(width, columns_of_thread), max_threads)},
          .stream = stream};
}

template <class T>
void launch_forward(const RmsNormForward& op, Stream stream) {
  const std::int64_t num_tokens = op.x_TD.dim(0);
  const std::int64_t width = op.x_TD.dim(1);
  const NormOfRows<T> norm = {.y_TD = op.y_TD.as<T>(),
                              .rrms_T = op.rrms_T.as<float>(),
                              .weight_D = op.weight_D.as<float>()};
  const NormOfRows<T> next = {.y_TD = or_null<T>(op.next.y_TD),
                              .rrms_T = or_null<float>(op.next.rrms_T),
                              .weight_D = or_null<float>(op.next.weight_D)};
  const T* const x_TD = op.x_TD.as<T>();
  const T* const residual_TD = or_null<T>(op.residual_TD);
  if (!fits<T>(width, kForwardVectors, kMaxThreads)) {
    launch(rmsnorm_forward_any_width_kernel<T>,
           choose_launch(num_tokens, width, 1, kAnyWidthForwardThreads, stream),
           norm,
           next,
           x_TD,
           residual_TD,
           width,
           op.eps);
    return;
  }
  launch(
      op.next.y_TD.present() ? rmsnorm_forward_kernel<T, true> : rmsnorm_forward_kernel<T, false>,
      choose_launch(num_tokens, width, kForwardVectors * kVectorWidth<T>, kMaxThreads, stream),
      norm,
      next,
      x_TD,
      residual_TD,
      width,
      op.eps);
}

template <class T, int kWidth>
void launch_backward_any_width(const GradientOfRows<T>& norm,
                               std::int64_t num_tokens,
                               std::int64_t width,
                               std::int64_t run,
                               Stream stream) {
  require(width <= kMaxBackwardWidth,
          "rmsnorm_backward: D is " + std::to_string(width) +
              " (a block keeps a row of f32 in shared memory); use a D of at most " +
              std::to_string(kMaxBackwardWidth));
  Launch shape = choose_launch(ceil_div(num_tokens, run), width, kWidth, kMaxThreads, stream);
  shape.shared_bytes = static_cast<std::size_t>(width) * sizeof(float);
  launch(rmsnorm_backward_any_width_kernel<T, kWidth>, shape, norm, num_tokens, width, run);
}

// The norm that follows `op`, alone.
RmsNormBackward next_of(const RmsNormBackward& op) {
  return {.dx_TD = op.dy_TD,
          .dweight_D = op.next.dweight_D,
          .dy_TD = op.next.dy_TD,
          .x_TD = op.next.x_TD,
          .weight_D = op.next.weight_D,
          .rrms_T = op.next.rrms_T,
          .partial_PD = op.next.partial_PD,
          .accumulate = op.next.accumulate,
          .weight_gradient = op.weight_gradient};
}

template <class T>
GradientOfRows<T> gradient_of(const RmsNormBackward& op) {
  return {.dx_TD = op.dx_TD.as<T>(),
          .partial_PD = op.partial_PD.as<float>(),
          .dy_TD = op.dy_TD.as<T>(),
          .x_TD = op.x_TD.as<T>(),
          .weight_D = op.weight_D.as<float>(),
          .rrms_T = op.rrms_T.as<float>(),
          .accumulate = op.accumulate};
}

RunsOfWeight runs_of(const RmsNormBackward& op) {
  return {.dweight_D = op.dweight_D.as<float>(), .partial_PD = op.partial_PD.as<float>()};
}

// `next`: the norm that follows, which takes the same pass; null where none does.
template <class T>
void launch_backward(const RmsNormBackward& op, const RmsNormBackward* next, Stream stream) {
  const std::int64_t num_tokens = op.x_TD.dim(0);
  const std::int64_t width = op.x_TD.dim(1);
  const std::int64_t run = std::max<std::int64_t>(1, ceil_div(num_tokens, op.partial_PD.dim(0)));
  const std::int64_t num_runs = ceil_div(num_tokens, run);
  const GradientOfRows<T> norm = gradient_of<T>(op);
  if (fits<T>(width, 1, kMaxThreads)) {
    launch(next == nullptr ? rmsnorm_backward_kernel<T, false> : rmsnorm_backward_kernel<T, true>,
           choose_launch(num_runs, width, kVectorWidth<T>, kMaxThreads, stream),
           norm,
           next == nullptr ? GradientOfRows<T>{} : gradient_of<T>(*next),
           num_tokens,
           width,
           run);
  } else if (width % kVectorWidth<T> == 0) {
    launch_backward_any_width<T, kVectorWidth<T>>(norm, num_tokens, width, run, stream);
  } else {
    launch_backward_any_width<T, 1>(norm, num_tokens, width, run, stream);
  }
  launch(rmsnorm_dweight_kernel,
         {.grid = {.x = ceil_div(width, kWarpSize), .y = next == nullptr ? 1 : 2},
          .block = {.x = kWarpSize * kWarpSize},
          .stream = stream},
         runs_of(op),
         next == nullptr ? RunsOfWeight{} : runs_of(*next),
         num_runs,
         width,
         op.weight_gradient == WeightGradient::add);
}

}  // namespace

void rmsnorm_forward(const RmsNormForward& op, Stream stream) {
  visit_gpu_float(op.y_TD.dtype, [&]<class T>() { launch_forward<T>(op, stream); });
}

void rmsnorm_backward(const RmsNormBackward& op, Stream stream) {
  visit_gpu_float(op.dx_TD.dtype, [&]<class T>() {
    if (!op.next.x_TD.present()) {
      return launch_backward<T>(op, nullptr, stream);
    }
    const RmsNormBackward next = next_of(op);
    if (fits<T>(op.dx_TD.dim(1), 1, kMaxBackwardThreads<true>)) {
      return launch_backward<T>(op, &next, stream);
    }
    launch_backward<T>(next, nullptr, stream);  // one norm after the other
    launch_backward<T>(op, nullptr, stream);
  });
}

}  // namespace memphis::kernels::cuda
