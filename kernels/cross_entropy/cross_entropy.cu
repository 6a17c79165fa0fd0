// SPDX-License-Identifier: Apache-2.0
//
// A block takes a row: one pass for the maximum and the sum together (online softmax), a second for
// the gradient, which finds the row in L2 where it is not longer than its share of it. A cap bounds
// logits, so that up to one of 64 there is no maximum to look for.
// Bound by memory: a logit is read twice and its gradient written once for two exponentials. With a cap
// it is as much the special-function unit, which then has an exponential and a quarter of a reciprocal
// more for each: 36 cycles of it for the 32 logits of a warp, where 4.3 TB/s take 41 for their 192 bytes.
#include "kernels/cross_entropy/cross_entropy.h"

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/device/soft_cap.h"
#include "kernels/or_null.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

// A vocabulary of 131072 in bf16 is 16 vectors a thread of the large block; the small one keeps the
// threads of a byte vocabulary busy.
constexpr std::int64_t kLargeThreads = 1024;
constexpr std::int64_t kSmallThreads = 128;
constexpr std::int64_t kLargeFrom = 4096;  // vectors of a row
// On an SM, of the large ones, so that others read while one waits for its barrier: 32 registers.
constexpr int kLargeBlocks = 2;

// Of bf16 alone: up to this cap e^l of any vocabulary sums up within f32, as 64 + ln(2^31) < ln(2^128),
// and what is far below the maximum is not lost, as e^-64 is a normal number. So no maximum runs.
constexpr float kLargestFixedCap = 64.0F;

// From raw logits to what the softmax is taken of. Values of type f32 are in nats, by tanhf and expf.
// Logits in bf16 keep eight bits, so that for them an exponential is one instruction of the
// special-function unit, good to 2 ulp, in units of ln 2, and a cap is soft_cap.h's: with expf and
// tanhf, dozens of instructions, a row would wait for arithmetic.
template <class T>
struct Scaling {
  static constexpr bool kExact = std::is_same_v<T, float>;
  static constexpr float kUnit = kExact ? 1.0F : 1.4426950408889634F;  // log2(e)
  static constexpr float kNats = kExact ? 1.0F : 0.6931471805599453F;  // ln 2, of a unit

  float inner;   // with a cap: of the logit in tanh, or in the tail's exponent
  float factor;  // logit = factor v + shift, with v the raw one, its tanh or its tail
  float shift;
  float slope;  // the derivative's factor

  Scaling(float multiplier, float cap) {
    const bool tail = cap > 0.0F && !kExact;
    inner = (tail ? 2.0F * kUnit : 1.0F) * (multiplier / cap);  // unused without a cap
    factor = kUnit * (cap > 0.0F ? tail ? -2.0F * cap : cap : multiplier);
    shift = tail ? kUnit * cap : 0.0F;
    slope = (tail ? 4.0F : 1.0F) * multiplier;
  }

  // v of raw logits
  template <bool kCapped, int kWidth>
  __device__ __forceinline__ void bend(float (&x)[kWidth]) const {
    if constexpr (kCapped) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        x[i] = kExact ? tanhf(inner * x[i]) : inner * x[i];
      }
      if constexpr (!kExact && kWidth == 1) {
        x[0] = gpu::soft_cap_tail(x[0]);
      } else if constexpr (!kExact) {
        static_assert(kWidth % 4 == 0);
#pragma unroll
        for (int i = 0; i < kWidth; i += 4) {
          float four[4] = {x[i], x[i + 1], x[i + 2], x[i + 3]};
          gpu::soft_cap_tails(four);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            x[i + k] = four[k];
          }
        }
      }
    }
  }
  // The logit of v, less `less`.
  template <bool kCapped>
  __device__ __forceinline__ float logit(float v, float less) const {
    if constexpr (kExact) {
      return factor * v - less;
    }
    return fmaf(v, factor, (kCapped ? shift : 0.0F) - less);
  }
  // The logit's derivative by the raw one is slope times this.
  template <bool kCapped>
  static __device__ __forceinline__ float bent(float v) {
    if constexpr (!kCapped) {
      return 1.0F;
    }
    return kExact ? 1.0F - v * v : fmaf(-v, v, v);
  }
  // e to the logit, and its inverse
  static __device__ __forceinline__ float exponential(float logit) {
    return kExact ? expf(logit) : gpu::exp2_approx(logit);
  }
  static __device__ __forceinline__ float logarithm(float sum) {
    return kExact ? logf(sum) : log2f(sum);
  }
};

// The logit of element `v` of a row, with the bits that sum_row has it in.
template <class T, int kWidth, bool kCapped>
__device__ __forceinline__ float logit_at(const T* row, std::int64_t v, const Scaling<T>& s) {
  const std::int64_t first = v / kWidth * kWidth;
  float l[kWidth];
  gpu::load_floats(row + first, l);
  s.template bend<kCapped>(l);
  float chosen = l[0];
#pragma unroll
  for (int i = 1; i < kWidth; ++i) {
    chosen = first + i == v ? l[i] : chosen;
  }
  return s.template logit<kCapped>(chosen, 0.0F);
}

// The row's maximum so far and the sum of e^(l - maximum), of the elements that this thread reads.
// -FLT_MAX and not -inf to start with: a logit of -inf then adds exp(-inf) and not exp(-inf + inf).
// A NaN is lost in the maximum and is not in the sum.
struct Running {
  float largest = -FLT_MAX;
  float sum = 0.0F;
};

//
// kRuns: whether a maximum is looked for; without, all is relative to 0.
template <class T, int kWidth, bool kCapped, bool kRuns>
__device__ __forceinline__ Running sum_row(const T* row, const Scaling<T>& s, std::int64_t V) {
  Running running;
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
  for (std::int64_t v = static_cast<std::int64_t>(threadIdx.x) * kWidth; v < V; v += step) {
    float l[kWidth];
    gpu::load_floats(row + v, l);
    s.template bend<kCapped>(l);
    float new_largest = running.largest;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      l[i] = s.template logit<kCapped>(l[i], 0.0F);
      new_largest = kRuns ? fmaxf(new_largest, l[i]) : 0.0F;
    }
    if constexpr (kRuns) {
      running.sum *= s.exponential(running.largest - new_largest);
      running.largest = new_largest;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      running.sum += s.exponential(kRuns ? l[i] - new_largest : l[i]);
    }
  }
  return running;
}

// The same of all threads of the block, to each of them.
template <class T, bool kRuns>
__device__ __forceinline__ Running sum_block(Running running, const Scaling<T>& s, float* scratch) {
  if constexpr (!kRuns) {
    return {0.0F, gpu::block_sum(running.sum, scratch)};
  }
  const float largest = gpu::block_max(running.largest, scratch);
  return {largest, gpu::block_sum(running.sum * s.exponential(running.largest - largest), scratch)};
}

// grad_scale (inverse e^(l - less) - onehot) dl/dlogits; each thread the elements that it reads.
// `target` outside of [0, V) is another rank's.
template <class T, int kWidth, bool kCapped>
__device__ __forceinline__ void write_gradient(T* gradient,
                                               const T* row,
                                               std::int64_t target,
                                               float less,
                                               float inverse,
                                               float grad_scale,
                                               const Scaling<T>& s,
                                               std::int64_t V) {
  const float factor = grad_scale * s.slope;
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
  for (std::int64_t v = static_cast<std::int64_t>(threadIdx.x) * kWidth; v < V; v += step) {
    float l[kWidth];
    float gradients[kWidth];
    gpu::load_floats(row + v, l);
    s.template bend<kCapped>(l);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      gradients[i] = s.exponential(s.template logit<kCapped>(l[i], less));
      if constexpr (Scaling<T>::kExact) {  // else a part of `less`
        gradients[i] *= inverse;
      }
    }
    if (v <= target && target < v + kWidth) {  // one vector of the row
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        gradients[i] -= v + i == target ? 1.0F : 0.0F;
      }
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      gradients[i] *= factor * s.template bent<kCapped>(l[i]);
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
template <class T, int kWidth, bool kCapped, bool kRuns>
__global__ void __launch_bounds__(kLargeThreads, kLargeBlocks)
    cross_entropy_kernel(float* __restrict__ loss,
                         T* dlogits,
                         const T* logits,
                         const std::int32_t* __restrict__ targets,
                         const float* __restrict__ grad_scale,
                         Scaling<T> s,
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
  const float target_logit = target < V ? logit_at<T, kWidth, kCapped>(row, target, s) : NAN;
  // The barriers inside also order the reads of the target's logit before the writes of the gradient.
  const Running all =
      sum_block<T, kRuns>(sum_row<T, kWidth, kCapped, kRuns>(row, s, V), s, scratch);
  const float logarithm = s.logarithm(all.sum);
  if (threadIdx.x == 0) {
    loss[t] = s.kNats * (logarithm - (target_logit - all.largest));
  }
  // write
  if (gradient != nullptr) {
    const float less = s.kExact ? all.largest : all.largest + logarithm;
    write_gradient<T, kWidth, kCapped>(
        gradient, row, target, less, 1.0F / all.sum, *grad_scale, s, V);
  }
}

// One rank's columns. grid: T rows, block: a multiple of 32; kWidth 1, or V % kWidth == 0
template <class T, int kWidth, bool kCapped, bool kRuns>
__global__ void __launch_bounds__(kLargeThreads, kLargeBlocks)
    cross_entropy_shard_kernel(float* __restrict__ lse,
                               float* __restrict__ target_logit,
                               const T* __restrict__ logits,
                               const std::int32_t* __restrict__ targets,
                               std::int64_t vocab_begin,
                               Scaling<T> s,
                               std::int64_t V) {
  __shared__ float scratch[gpu::kWarpSize];
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const T* const row = logits + t * V;
  const Running all =
      sum_block<T, kRuns>(sum_row<T, kWidth, kCapped, kRuns>(row, s, V), s, scratch);
  if (threadIdx.x == 0) {
    const std::int64_t target = targets[t] - vocab_begin;
    const bool is_here = targets[t] >= 0 && target >= 0 && target < V;
    lse[t] = s.kNats * (all.largest + s.logarithm(all.sum));
    target_logit[t] = is_here ? s.kNats * logit_at<T, kWidth, kCapped>(row, target, s) : 0.0F;
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
__global__ void __launch_bounds__(kLargeThreads, kLargeBlocks)
    cross_entropy_gradient_kernel(float* __restrict__ loss,
                                  T* dlogits,
                                  const T* logits,
                                  const std::int32_t* __restrict__ targets,
                                  const float* __restrict__ lse,
                                  const float* __restrict__ target_logit,
                                  const float* __restrict__ grad_scale,
                                  std::int64_t vocab_begin,
                                  Scaling<T> s,
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
    write_gradient<T, kWidth, kCapped>(dlogits + t * V,
                                       logits + t * V,
                                       targets[t] - vocab_begin,
                                       lse[t] * s.kUnit,
                                       1.0F,
                                       *grad_scale,
                                       s,
                                       V);
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

template <class T, int kWidth, bool kCapped, bool kRuns>
void launch_rows(const CrossEntropy& op, const Launch& rows) {
  launch(cross_entropy_kernel<T, kWidth, kCapped, kRuns>,
         rows,
         op.loss_T.as<float>(),
         or_null<T>(op.dlogits_TV),
         op.logits_TV.as<T>(),
         op.targets_T.as<std::int32_t>(),
         or_null<float>(op.grad_scale_1),
         Scaling<T>(op.multiplier, op.cap),
         op.logits_TV.dim(1));
}

template <class T, int kWidth, bool kCapped, bool kRuns>
void launch_rows(const CrossEntropyShard& op, const Launch& rows) {
  launch(cross_entropy_shard_kernel<T, kWidth, kCapped, kRuns>,
         rows,
         op.lse_T.as<float>(),
         op.target_T.as<float>(),
         op.logits_TV.as<T>(),
         op.targets_T.as<std::int32_t>(),
         op.vocab_begin,
         Scaling<T>(op.multiplier, op.cap),
         op.logits_TV.dim(1));
}

template <class T, int kWidth, bool kCapped, bool kRuns>
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
         Scaling<T>(op.multiplier, op.cap),
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
      if (op.cap > 0.0F && op.cap <= kLargestFixedCap && !Scaling<T>::kExact) {
        launch_rows<T, kWidth, true, Scaling<T>::kExact>(op, rows);
      } else if (op.cap > 0.0F) {
        launch_rows<T, kWidth, true, true>(op, rows);
      } else {
        launch_rows<T, kWidth, false, true>(op, rows);
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
