// SPDX-License-Identifier: Apache-2.0
//
// A block takes a row: one pass for the maximum and the sum together (online softmax), a second for
// the gradient, which finds the row in L2 where it is not longer than its share of it. Bound by
// memory: a logit is read twice and its gradient written once for two exponentials.
#include "kernels/cross_entropy/cross_entropy.h"

#include <cfloat>
#include <cmath>
#include <cstdint>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

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
  float grad_scale;
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

// grid: T rows, block: a multiple of 32; kWidth 1, or V % kWidth == 0. dlogits may be logits, or
// null.
template <class T, int kWidth, bool kCapped>
__global__ void cross_entropy_kernel(float* __restrict__ loss,
                                     T* dlogits,
                                     const T* logits,
                                     const std::int32_t* __restrict__ targets,
                                     Scaling s,
                                     std::int64_t V) {
  __shared__ float scratch[gpu::kWarpSize];
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const T* const row = logits + t * V;
  T* const gradient = dlogits == nullptr ? nullptr : dlogits + t * V;
  const std::int64_t begin = static_cast<std::int64_t>(threadIdx.x) * kWidth;
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
  const std::int64_t target = targets[t];
  if (target < 0) {
    if (threadIdx.x == 0) {
      loss[t] = 0.0F;
    }
    if (gradient != nullptr) {
      const float zeros[kWidth] = {};
      for (std::int64_t v = begin; v < V; v += step) {
        gpu::store_floats(gradient + v, zeros);
      }
    }
    return;
  }

  // reduce: the sum is kept relative to the maximum so far. -FLT_MAX and not -inf to start with: a
  // logit of -inf then adds exp(-inf) and not exp(-inf + inf). A NaN is lost in the maximum and is
  // not in the sum.
  const float target_logit = target < V ? scaled<kCapped>(gpu::to_float(row[target]), s) : NAN;
  float largest = -FLT_MAX;
  float sum = 0.0F;
  for (std::int64_t v = begin; v < V; v += step) {
    float l[kWidth];
    gpu::load_floats(row + v, l);
    float new_largest = largest;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      l[i] = scaled<kCapped>(l[i], s);
      new_largest = fmaxf(new_largest, l[i]);
    }
    sum *= expf(largest - new_largest);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sum += expf(l[i] - new_largest);
    }
    largest = new_largest;
  }
  const float row_largest = gpu::block_max(largest, scratch);
  // The barriers inside also order the reads of row[target] before the writes of the gradient.
  const float row_sum = gpu::block_sum(sum * expf(largest - row_largest), scratch);
  if (threadIdx.x == 0) {
    loss[t] = logf(row_sum) - (target_logit - row_largest);
  }
  if (gradient == nullptr) {
    return;
  }

  // write: each thread the elements that it reads
  const float inverse = 1.0F / row_sum;
  for (std::int64_t v = begin; v < V; v += step) {
    float l[kWidth];
    gpu::load_floats(row + v, l);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float logit = scaled<kCapped>(l[i], s);
      const float prob = expf(logit - row_largest) * inverse;
      const float onehot = v + i == target ? 1.0F : 0.0F;
      l[i] = s.grad_scale * (prob - onehot) * slope<kCapped>(logit, s);
    }
    gpu::store_floats(gradient + v, l);
  }
}

Launch choose_launch(std::int64_t T, std::int64_t num_vectors, Stream stream) {
  return {.grid = {.x = T},
          .block = {.x = num_vectors >= kLargeFrom ? kLargeThreads : kSmallThreads},
          .shared_bytes = 0,
          .stream = stream};
}

template <class T, int kWidth, bool kCapped>
void launch_rows(const CrossEntropy& op, Stream stream) {
  const std::int64_t V = op.logits_TV.dim(1);
  launch(cross_entropy_kernel<T, kWidth, kCapped>,
         choose_launch(op.logits_TV.dim(0), ceil_div(V, kWidth), stream),
         op.loss_T.as<float>(),
         op.dlogits_TV.present() ? op.dlogits_TV.as<T>() : nullptr,
         op.logits_TV.as<T>(),
         op.targets_T.as<std::int32_t>(),
         Scaling{.multiplier = op.multiplier,
                 .cap = op.cap,
                 .inner = op.multiplier / op.cap,
                 .inverse_cap = 1.0F / op.cap,
                 .grad_scale = op.grad_scale},
         V);
}

template <class T, int kWidth>
void launch_width(const CrossEntropy& op, Stream stream) {
  if (op.cap > 0.0F) {
    launch_rows<T, kWidth, true>(op, stream);
  } else {
    launch_rows<T, kWidth, false>(op, stream);
  }
}

}  // namespace

void cross_entropy(const CrossEntropy& op, Stream stream) {
  visit_gpu_float(op.logits_TV.dtype, [&]<class T>() {
    constexpr int kWidth = gpu::kVectorWidth<T>;
    if (op.logits_TV.dim(1) % kWidth == 0) {
      launch_width<T, kWidth>(op, stream);
    } else {  // only the first row is aligned
      launch_width<T, 1>(op, stream);
    }
  });
}

}  // namespace memphis::kernels::cuda
