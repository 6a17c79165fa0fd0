// SPDX-License-Identifier: Apache-2.0
//
// Rows of y are cut into vectors of 16 bytes, one for each thread in forward; a block takes a whole
// row in backward, because the gradient of the row's gate is a sum over it. Bound by memory: 3
// elements forward and 5 backward are moved for about 30 and 50 instructions each.
#include "kernels/geglu/geglu.h"

#include <algorithm>
#include <cstdint>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/geglu/gelu_gpu.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kMaxThreads = 256;  // eight warps hide the loads of a row; more would idle at its end

// grid: R rows x vectors of a row / block, block: a multiple of 32; kWidth 1, or F % kWidth == 0
template <class T, int kWidth>
__global__ void geglu_forward_kernel(T* __restrict__ y,
                                     const T* __restrict__ gate_up,
                                     const float* __restrict__ gates,
                                     const std::int32_t* __restrict__ source,
                                     std::int64_t F) {
  const auto r = static_cast<std::int64_t>(blockIdx.x);
  const std::int64_t f =
      (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kWidth;
  if (f >= F) {
    return;
  }
  // load
  float gate[kWidth];
  float up[kWidth];
  gpu::load_floats(gate_up + r * 2 * F + f, gate);
  gpu::load_floats(gate_up + r * 2 * F + F + f, up);
  const float scale = gates == nullptr ? 1.0F : gates[source[r]];
  // write
  float out[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    out[i] = gelu<T>(gate[i]).value * up[i] * scale;
  }
  gpu::store_floats(y + r * F + f, out);
}

// grid: R rows, block: a multiple of 32; kWidth 1, or F % kWidth == 0. dgate_up may be gate_up.
template <class T, int kWidth>
__global__ void geglu_backward_kernel(T* dgate_up,
                                      float* dgates,
                                      const T* __restrict__ dy,
                                      const T* gate_up,
                                      const float* __restrict__ gates,
                                      const std::int32_t* __restrict__ source,
                                      std::int64_t F) {
  __shared__ float scratch[gpu::kWarpSize];
  const auto r = static_cast<std::int64_t>(blockIdx.x);
  const T* const gate_row = gate_up + r * 2 * F;
  T* const dgate_row = dgate_up + r * 2 * F;
  const float scale = gates == nullptr ? 1.0F : gates[source[r]];
  float sum = 0.0F;
  for (std::int64_t f = static_cast<std::int64_t>(threadIdx.x) * kWidth; f < F;
       f += static_cast<std::int64_t>(blockDim.x) * kWidth) {
    // load
    float gate[kWidth];
    float up[kWidth];
    float gradient[kWidth];
    gpu::load_floats(gate_row + f, gate);
    gpu::load_floats(gate_row + F + f, up);
    gpu::load_floats(dy + r * F + f, gradient);
    // write: the elements that this thread has just read
    float dgate[kWidth];
    float dup[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const Gelu g = gelu<T>(gate[i]);
      sum += gradient[i] * g.value * up[i];
      dgate[i] = scale * gradient[i] * up[i] * g.derivative;
      dup[i] = scale * gradient[i] * g.value;
    }
    gpu::store_floats(dgate_row + f, dgate);
    gpu::store_floats(dgate_row + F + f, dup);
  }
  // reduce
  if (dgates != nullptr) {
    sum = gpu::block_sum(sum, scratch);
    if (threadIdx.x == 0) {
      dgates[source[r]] = sum;
    }
  }
}

// As many threads as a row has vectors, in whole warps.
std::int64_t choose_threads(std::int64_t num_vectors) {
  return std::clamp<std::int64_t>(
      ceil_div(num_vectors, gpu::kWarpSize) * gpu::kWarpSize, gpu::kWarpSize, kMaxThreads);
}

Launch choose_forward(std::int64_t R, std::int64_t num_vectors, Stream stream) {
  const std::int64_t threads = choose_threads(num_vectors);
  return {.grid = {.x = R, .y = ceil_div(num_vectors, threads)},
          .block = {.x = threads},
          .shared_bytes = 0,
          .stream = stream};
}

Launch choose_backward(std::int64_t R, std::int64_t num_vectors, Stream stream) {
  return {.grid = {.x = R},
          .block = {.x = choose_threads(num_vectors)},
          .shared_bytes = 0,
          .stream = stream};
}

template <class T, int kWidth>
void launch_forward(const GegluForward& op, Stream stream) {
  const std::int64_t F = op.y_RF.dim(1);
  const bool gated = op.gates_TK.present();
  launch(geglu_forward_kernel<T, kWidth>,
         choose_forward(op.y_RF.dim(0), ceil_div(F, kWidth), stream),
         op.y_RF.as<T>(),
         op.gate_up_R2F.as<T>(),
         gated ? op.gates_TK.as<float>() : nullptr,
         gated ? op.source_R.as<std::int32_t>() : nullptr,
         F);
}

template <class T, int kWidth>
void launch_backward(const GegluBackward& op, Stream stream) {
  const std::int64_t F = op.dy_RF.dim(1);
  const bool gated = op.gates_TK.present();
  launch(geglu_backward_kernel<T, kWidth>,
         choose_backward(op.dy_RF.dim(0), ceil_div(F, kWidth), stream),
         op.dgate_up_R2F.as<T>(),
         gated ? op.dgates_TK.as<float>() : nullptr,
         op.dy_RF.as<T>(),
         op.gate_up_R2F.as<T>(),
         gated ? op.gates_TK.as<float>() : nullptr,
         gated ? op.source_R.as<std::int32_t>() : nullptr,
         F);
}

}  // namespace

void geglu_forward(const GegluForward& op, Stream stream) {
  visit_gpu_float(op.y_RF.dtype, [&]<class T>() {
    constexpr int kWidth = gpu::kVectorWidth<T>;
    if (op.y_RF.dim(1) % kWidth == 0) {
      launch_forward<T, kWidth>(op, stream);
    } else {  // only the first row is aligned
      launch_forward<T, 1>(op, stream);
    }
  });
}

void geglu_backward(const GegluBackward& op, Stream stream) {
  visit_gpu_float(op.dy_RF.dtype, [&]<class T>() {
    constexpr int kWidth = gpu::kVectorWidth<T>;
    if (op.dy_RF.dim(1) % kWidth == 0) {
      launch_backward<T, kWidth>(op, stream);
    } else {
      launch_backward<T, 1>(op, stream);
    }
  });
}

}  // namespace memphis::kernels::cuda
