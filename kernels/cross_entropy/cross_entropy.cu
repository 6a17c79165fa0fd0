// SPDX-License-Identifier: Apache-2.0
//
// A block takes a row: one pass for the maximum and the sum together (online softmax), a second for
// the gradient, which finds the row in L2 where it is not longer than its share of it. Bound by
// memory: a logit is read twice and its gradient written once for two exponentials.
#include "kernels/cross_entropy/cross_entropy.h"

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/or_null.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

// A vocabulary of 131072 in bf16 is 16 vectors a thread of the large block; the small one keeps the
// threads of a byte vocabulary busy.
constexpr std::int64_t kLargeThreads = 1024;
constexpr std::int64_t kSmallThreads = 128;
constexpr std::int64_t kLargeFrom = 4096;  // vectors of a row

struct Scaling {
  float multiplier;
  float cap;
  float inner;  // multiplier / cap; unused without a cap, like the next
  float inverse_cap;
};

// The logit that the softmax is taken of, and its derivative by the raw one. tanhf and not
// tanh.approx, whose error of 2^-11 would be 1e-2 of a logit at a cap of 30.
template <bool kCapped>
__device__ __forceinline__ float scaled(float logit, const Scaling& s) {
  return kCapped ? s.cap * tanhf(s.inner * logit) : s.multiplier * logit;
}
template <bool kCapped>
__device__ __forceinline__ float slope(float scaled_logit, const Scaling& s) {
  const float ratio = kCapped ? scaled_logit * s.inverse_cap : 0.0F;
  return s.multiplier * (1.0F - ratio * ratio);
}

// e^x. Logits in bf16 keep eight bits, so that for them it is one instruction of the special-function
// unit, good to 2 ulp: with expf, a dozen instructions, a row would wait for arithmetic.
template <class T>
__device__ __forceinline__ float exponential(float x) {
  constexpr float kLog2E = 1.4426950408889634F;
  return std::is_same_v<T, float> ? expf(x) : gpu::exp2_approx(x * kLog2E);
}

// The row's maximum so far and the sum of e^(l - maximum), of the elements that this thread reads.
// -FLT_MAX and not -inf to start with: a logit of -inf then adds exp(-inf) and not exp(-inf + inf).
// A NaN is lost in the maximum and is not in the sum.
struct Running {
  float largest = -FLT_MAX;
  float sum = 0.0F;
};

template <class T, int kWidth, bool kCapped>
__device__ __forceinline__ Running sum_row(const T* row, const Scaling& s, std::int64_t V) {
  Running running;
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
  for (std::int64_t v = static_cast<std::int64_t>(threadIdx.x) * kWidth; v < V; v += step) {
    float l[kWidth];
    gpu::load_floats(row + v, l);
    float new_largest = running.largest;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      l[i] = scaled<kCapped>(l[i], s);
      new_largest = fmaxf(new_largest, l[i]);
    }
    running.sum *= exponential<T>(running.largest - new_largest);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      running.sum += exponential<T>(l[i] - new_largest);
    }
    running.largest = new_largest;
  }
  return running;
}

// grad_scale (e^(l - shift) inverse - onehot) dl/dlogits; each thread the elements that it reads.
// `target` outside of [0, V) is another rank's.
template <class T, int kWidth, bool kCapped>
__device__ __forceinline__ void write_gradient(T* gradient,
                                               const T* row,
                                               std::int64_t target,
                                               float shift,
                                               float inverse,
                                               float grad_scale,
                                               const Scaling& s,
                                               std::int64_t V) {
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
  for (std::int64_t v = static_cast<std::int64_t>(threadIdx.x) * kWidth; v < V; v += step) {
    float l[kWidth];
    float gradients[kWidth];
    gpu::load_floats(row + v, l);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      l[i] = scaled<kCapped>(l[i], s);
      gradients[i] = exponential<T>(l[i] - shift) * inverse;
    }
    if (v <= target && target < v + kWidth) {  // one vector of the row
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        gradients[i] -= v + i == target ? 1.0F : 0.0F;
      }
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      gradients[i] *= grad_scale * slope<kCapped>(l[i], s);
    }
    gpu::store_floats(gradient + v, gradients);
  }
}

template <class T, int kWidth>
__device__ __forceinline__ void write_zeros(T* gradient, std::int64_t V) {
  const float zeros[kWidth] = {};
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
  for (std::int64_t v = static_cast<std::int64_t>(threadIdx.x) * kWidth; v < V; v += step) {
    gpu::store_floats(gradient + v, zeros);
  }
}

// grid: T rows, block: a multiple of 32; kWidth 1, or V % kWidth == 0. dlogits may be logits, or
// null; grad_scale is not looked at then.
template <class T, int kWidth, bool kCapped>
__global__ void cross_entropy_kernel(float* __restrict__ loss,
                                     T* dlogits,
                                     const T* logits,
                                     const std::int32_t* __restrict__ targets,
                                     const float* __restrict__ grad_scale,
                                     Scaling s,
                                     std::int64_t V) {
  __shared__ float scratch[gpu::kWarpSize];
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const T* const row = logits + t * V;
  T* const gradient = dlogits == nullptr ? nullptr : dlogits + t * V;
  const std::int64_t target = targets[t];
  if (target < 0) {
    if (threadIdx.x == 0) {
      loss[t] = 0.0F;
    }
    if (gradient != nullptr) {
      write_zeros<T, kWidth>(gradient, V);
    }
    return;
  }
  // reduce
  const float target_logit = target < V ? scaled<kCapped>(gpu::to_float(row[target]), s) : NAN;
  const Running running = sum_row<T, kWidth, kCapped>(row, s, V);
  const float largest = gpu::block_max(running.largest, scratch);
  // The barriers inside also order the reads of row[target] before the writes of the gradient.
  const float sum =
      gpu::block_sum(running.sum * exponential<T>(running.largest - largest), scratch);
  if (threadIdx.x == 0) {
    loss[t] = logf(sum) - (target_logit - largest);
  }
  // write
  if (gradient != nullptr) {
    write_gradient<T, kWidth, kCapped>(
        gradient, row, target, largest, 1.0F / sum, *grad_scale, s, V);
  }
}

// One rank's columns. grid: T rows, block: a multiple of 32; kWidth 1, or V % kWidth == 0
template <class T, int kWidth, bool kCapped>
__global__ void cross_entropy_shard_kernel(float* __restrict__ lse,
                                           float* __restrict__ target_logit,
                                           const T* __restrict__ logits,
                                           const std::int32_t* __restrict__ targets,
                                           std::int64_t vocab_begin,
                                           Scaling s,
                                           std::int64_t V) {
  __shared__ float scratch[gpu::kWarpSize];
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const T* const row = logits + t * V;
  const Running running = sum_row<T, kWidth, kCapped>(row, s, V);
  const float largest = gpu::block_max(running.largest, scratch);
  const float sum =
      gpu::block_sum(running.sum * exponential<T>(running.largest - largest), scratch);
  if (threadIdx.x == 0) {
    const std::int64_t target = targets[t] - vocab_begin;
    const bool is_here = targets[t] >= 0 && target >= 0 && target < V;
    lse[t] = largest + logf(sum);
    target_logit[t] = is_here ? scaled<kCapped>(gpu::to_float(row[target]), s) : 0.0F;
  }
}

// A thread takes a token. grid: T / kSmallThreads, block: kSmallThreads
__global__ void cross_entropy_join_kernel(float* __restrict__ lse,
                                          float* __restrict__ target_logit,
                                          const float* __restrict__ shard_lse,
                                          const float* __restrict__ shard_target,
                                          std::int64_t P,
                                          std::int64_t T) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kSmallThreads + threadIdx.x;
  if (t >= T) {
    return;
  }
  float largest = -FLT_MAX;  // as in Running
  for (std::int64_t p = 0; p < P; ++p) {
    largest = fmaxf(largest, shard_lse[p * T + t]);
  }
  float target = shard_target[t];
  for (std::int64_t p = 1; p < P; ++p) {
    target += shard_target[p * T + t];
  }
  float sum = 0.0F;
  for (std::int64_t p = 0; p < P; ++p) {
    sum += expf(shard_lse[p * T + t] - largest);
  }
  lse[t] = largest + logf(sum);
  target_logit[t] = target;
}

// grid: T rows, block: a multiple of 32; kWidth 1, or V % kWidth == 0. dlogits may be logits, or
// null; grad_scale is not looked at then.
template <class T, int kWidth, bool kCapped>
__global__ void cross_entropy_gradient_kernel(float* __restrict__ loss,
                                              T* dlogits,
                                              const T* logits,
                                              const std::int32_t* __restrict__ targets,
                                              const float* __restrict__ lse,
                                              const float* __restrict__ target_logit,
                                              const float* __restrict__ grad_scale,
                                              std::int64_t vocab_begin,
                                              Scaling s,
                                              std::int64_t V) {
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const bool counts = targets[t] >= 0;
  if (threadIdx.x == 0) {
    loss[t] = counts ? lse[t] - target_logit[t] : 0.0F;
  }
  if (dlogits == nullptr) {
    return;
  }
  if (counts) {
    write_gradient<T, kWidth, kCapped>(
        dlogits + t * V, logits + t * V, targets[t] - vocab_begin, lse[t], 1.0F, *grad_scale, s, V);
  } else {
    write_zeros<T, kWidth>(dlogits + t * V, V);
  }
}

Launch choose_launch(std::int64_t T, std::int64_t num_vectors, Stream stream) {
  return {.grid = {.x = T},
          .block = {.x = num_vectors >= kLargeFrom ? kLargeThreads : kSmallThreads},
          .shared_bytes = 0,
          .stream = stream};
}

template <class Op>
Scaling scaling_of(const Op& op) {
  return {.multiplier = op.multiplier,
          .cap = op.cap,
          .inner = op.multiplier / op.cap,
          .inverse_cap = 1.0F / op.cap};
}

template <class T, int kWidth, bool kCapped>
void launch_rows(const CrossEntropy& op, const Launch& rows) {
  launch(cross_entropy_kernel<T, kWidth, kCapped>,
         rows,
         op.loss_T.as<float>(),
         or_null<T>(op.dlogits_TV),
         op.logits_TV.as<T>(),
         op.targets_T.as<std::int32_t>(),
         or_null<float>(op.grad_scale_1),
         scaling_of(op),
         op.logits_TV.dim(1));
}

template <class T, int kWidth, bool kCapped>
void launch_rows(const CrossEntropyShard& op, const Launch& rows) {
  launch(cross_entropy_shard_kernel<T, kWidth, kCapped>,
         rows,
         op.lse_T.as<float>(),
         op.target_T.as<float>(),
         op.logits_TV.as<T>(),
         op.targets_T.as<std::int32_t>(),
         op.vocab_begin,
         scaling_of(op),
         op.logits_TV.dim(1));
}

template <class T, int kWidth, bool kCapped>
void launch_rows(const CrossEntropyGradient& op, const Launch& rows) {
  launch(cross_entropy_gradient_kernel<T, kWidth, kCapped>,
         rows,
         op.loss_T.as<float>(),
         or_null<T>(op.dlogits_TV),
         op.logits_TV.as<T>(),
         op.targets_T.as<std::int32_t>(),
         op.lse_T.as<float>(),
         op.target_T.as<float>(),
         or_null<float>(op.grad_scale_1),
         op.vocab_begin,
         scaling_of(op),
         op.logits_TV.dim(1));
}

// A block a row, in the width and the variant that the operands allow.
template <class Op>
void launch_op(const Op& op, Stream stream) {
  visit_gpu_float(op.logits_TV.dtype, [&]<class T>() {
    constexpr int kVector = gpu::kVectorWidth<T>;
    const std::int64_t V = op.logits_TV.dim(1);
    const auto with_width = [&]<int kWidth>() {
      const Launch rows = choose_launch(op.logits_TV.dim(0), ceil_div(V, kWidth), stream);
      if (op.cap > 0.0F) {
        launch_rows<T, kWidth, true>(op, rows);
      } else {
        launch_rows<T, kWidth, false>(op, rows);
      }
    };
    if (V % kVector == 0) {
      with_width.template operator()<kVector>();
    } else {  // only the first row is aligned
      with_width.template operator()<1>();
    }
  });
}

}  // namespace

void cross_entropy(const CrossEntropy& op, Stream stream) {
  launch_op(op, stream);
}

void cross_entropy_shard(const CrossEntropyShard& op, Stream stream) {
  launch_op(op, stream);
}

void cross_entropy_join(const CrossEntropyJoin& op, Stream stream) {
  const std::int64_t P = op.lse_PT.dim(0);
  const std::int64_t T = op.lse_PT.dim(1);
  launch(cross_entropy_join_kernel,
         {.grid = {.x = ceil_div(T, kSmallThreads)},
          .block = {.x = kSmallThreads},
          .shared_bytes = 0,
          .stream = stream},
         op.lse_T.as<float>(),
         op.target_T.as<float>(),
         op.lse_PT.as<float>(),
         op.target_PT.as<float>(),
         P,
         T);
}

void cross_entropy_gradient(const CrossEntropyGradient& op, Stream stream) {
  launch_op(op, stream);
}

}  // namespace memphis::kernels::cuda
