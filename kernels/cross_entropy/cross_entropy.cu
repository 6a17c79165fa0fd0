// SPDX-License-Identifier: Apache-2.0
//
// A block takes a row: one pass for the maximum and the sum together (online softmax), a second for
// the gradient. Between the two the row waits in shared memory, or as much of it as fits: 224 KiB,
// of the 256 that 131072 logits have in bf16. The second pass begins where the first ended, so that
// what it reads again is what L2 was asked for last. A cap bounds logits, so that up to one of 64
// there is no maximum to look for.
// Bound by memory: a logit is read once and its gradient written once. For the 32 bytes of 8 logits
// a thread has 150 instructions, where 4.2 TB/s on an H200 leave room for 226. With a cap they are
// 257, and the bound is the special-function unit, which then has an exponential and a quarter of a
// reciprocal more for each logit and pass: 36 cycles for the 32 logits of a warp, where memory
// takes 28.
#include "kernels/cross_entropy/cross_entropy.h"

#include <algorithm>
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
#include "kernels/whole_warps.h"

namespace memphis::kernels::cuda {
namespace {

// Vectors of a thread that are on their way: 64 KiB of a block of kMaxThreads, where 29 KB an SM
// hide the latency of memory at its full rate. A block has threads for so many vectors each.
constexpr int kAhead = 4;
constexpr int kMaxThreads = 1024;
// On an SM, of rows that fit twice in its shared memory: up to 57344 logits in bf16. 32 registers.
constexpr int kBlocksPerSm = 2;
constexpr std::int64_t kScratchBytes = gpu::kWarpSize * sizeof(float);  // of a block's sums
constexpr std::int64_t kJoinThreads = 128;

// Of bf16 alone: up to this cap e^l of any vocabulary sums up within f32, as 64 + ln(2^31) <
// ln(2^128), and what is far below the maximum is not lost, as e^-64 is a normal number. So no
// maximum runs.
constexpr float kLargestFixedCap = 64.0F;

// From raw logits to what the softmax is taken of. Values of type f32 are in nats, by tanhf and
// expf. Logits in bf16 keep eight bits, so that for them an exponential is one instruction of the
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
  static __device__ __forceinline__ float slope_factor(float v) {
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

// What a thread reads of a row: vectors a block's width apart, by way of slots in dynamic shared
// memory that are its own, so that no barrier orders anything. kAhead vectors are on their way at a
// time, and occupy no register.
//
// Forwards, each vector has a slot of its own while there are any; from then on the last kAhead
// slots take turns. Backwards, a vector whose slot another one took is read again, into that slot
// as soon as it is free. Of 10 vectors and 7 slots, kAhead being 4:
//
//   vector       0  1  2  3  4  5  6  7  8  9
//   its slot     0  1  2  3  4  5  6  3  4  5
//   read again            ^  ^  ^               when 7, 8 and 9 have left it
//
// A copy is asked for with each vector taken, be it an empty one: take() waits for all but the
// kAhead - 1 newest.
// Without slots (kWidth 1: too little for an asynchronous copy) a vector is read when it is needed.
template <class T, int kWidth>
class RowPass {
 public:
  static constexpr int kSlotBytes = kWidth > 1 ? kWidth * sizeof(T) : 0;

  // num_slots of a thread: kAhead or more, unless kSlotBytes is 0.
  __device__ RowPass(const T* row, std::int64_t V, int num_slots)
      : V_(static_cast<unsigned>(V)),
        step_(blockDim.x * kWidth),
        end_of_slots_(static_cast<unsigned>(num_slots) * step_),
        source_(row + v_) {}

  // Calls use(first element, the kWidth values from there on), which may overwrite them in memory.
  template <class Use>
  __device__ __forceinline__ void forwards(const Use& use) {
    for (unsigned i = 0; i < kAhead; ++i) {
      ask_for(source_ + i * step_, slot_ + i * step_, v_ + i * step_ < V_);
    }
#pragma unroll 1
    for (; v_ < V_; v_ += step_) {
      float values[kWidth];
      take(values);
      const unsigned ahead = kAhead * step_;
      const unsigned beyond = slot_ + ahead;
      ask_for(source_ + ahead, beyond < end_of_slots_ ? beyond : slot_, v_ + ahead < V_);
      use(v_, values);
      source_ += step_;
      slot_ += step_;
      slot_ -= slot_ < end_of_slots_ ? 0 : ahead;
    }
  }
  // The same in the other direction, from where that ended.
  template <class Use>
  __device__ __forceinline__ void backwards(const Use& use) {
    const unsigned ahead = kAhead * step_;
#pragma unroll 1
    while (v_ >= step_) {
      // Of the slots that took turns, the last comes before the first.
      slot_ += v_ >= end_of_slots_ && slot_ < end_of_slots_ - ahead + step_ ? ahead : 0;
      slot_ -= step_;
      source_ -= step_;
      v_ -= step_;
      float values[kWidth];
      take(values);
      ask_for(source_ - ahead, slot_, v_ >= end_of_slots_);
      use(v_, values);
    }
  }

 private:
  // Wanted or not, it is one group more, for take() to count.
  __device__ void ask_for(const T* source, unsigned slot, bool wanted) const {
    if constexpr (kSlotBytes > 0) {
      if (wanted) {
        gpu::copy_async_16(gpu::dynamic_shared<T>() + slot, source, true);
      }
      gpu::copy_async_commit();
    }
  }
  __device__ void take(float (&values)[kWidth]) const {
    if constexpr (kSlotBytes > 0) {
      gpu::copy_async_wait<kAhead - 1>();
      gpu::load_floats(gpu::dynamic_shared<T>() + slot_, values);
    } else {
      gpu::load_floats(source_, values);
    }
  }

  // In elements, of the row and of all threads' slots alike: a thread's n-th slot begins n step_
  // behind its first, as its n-th vector does in the row. 32 bits: targets have no more.
  unsigned V_;
  unsigned step_;  // from a vector of the thread to its next
  unsigned end_of_slots_;
  // Of the next vector, its first element, its slot and where it lies in memory.
  unsigned v_ = threadIdx.x * kWidth;
  unsigned slot_ = threadIdx.x * kWidth;
  const T* source_;
};

// The row's maximum so far and the sum of e^(l - maximum), of the elements that this thread reads.
// -FLT_MAX and not -inf to start with: a logit of -inf then adds exp(-inf) and not exp(-inf + inf).
// A NaN is lost in the maximum and is not in the sum.
struct Running {
  float largest = -FLT_MAX;
  float sum = 0.0F;
};

// kRuns: whether a maximum is looked for; without, all is relative to 0.
template <class T, int kWidth, bool kCapped, bool kRuns>
__device__ __forceinline__ Running sum_row(RowPass<T, kWidth>& pass, const Scaling<T>& s) {
  Running running;
  pass.forwards([&](unsigned /*v*/, float(&l)[kWidth]) {
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
  });
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

// The gradient of a row, a vector of it at a time: grad_scale (inverse e^(l - less) - onehot)
// dl/dlogits. Of bf16 `less` is the lse, and `inverse` is not looked at. `target` outside of [0, V)
// is another rank's.
template <class T, int kWidth, bool kCapped>
class GradientOfRow {
 public:
  __device__ GradientOfRow(T* gradient,
                           std::int64_t target,
                           float less,
                           float inverse,
                           float grad_scale,
                           const Scaling<T>& s)
      : gradient_(gradient),
        target_(static_cast<unsigned>(target)),
        less_(less),
        inverse_(inverse),
        factor_(grad_scale * s.slope),
        s_(s) {}

  __device__ __forceinline__ void operator()(unsigned v, float (&l)[kWidth]) const {
    float gradients[kWidth];
    s_.template bend<kCapped>(l);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      gradients[i] = s_.exponential(s_.template logit<kCapped>(l[i], less_));
      if constexpr (Scaling<T>::kExact) {  // else a part of `less`
        gradients[i] *= inverse_;
      }
    }
    const unsigned place = target_ - v;
    if (place < kWidth) {  // one vector of the row
#pragma unroll
      for (unsigned i = 0; i < kWidth; ++i) {
        gradients[i] -= i == place ? 1.0F : 0.0F;
      }
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      gradients[i] *= factor_ * s_.template slope_factor<kCapped>(l[i]);
    }
    gpu::store_floats(gradient_ + v, gradients);
  }

 private:
  T* gradient_;
  unsigned target_;  // past the row where it is another rank's: one before it is as well
  float less_;
  float inverse_;
  float factor_;
  const Scaling<T>& s_;
};

template <class T, int kWidth>
__device__ __forceinline__ void write_zeros(T* gradient, std::int64_t V) {
  const float zeros[kWidth] = {};
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
  for (std::int64_t v = static_cast<std::int64_t>(threadIdx.x) * kWidth; v < V; v += step) {
    gpu::store_floats(gradient + v, zeros);
  }
}

// grid: T rows, block: a multiple of 32, shared: num_slots vectors a thread; kWidth 1, or
// V % kWidth == 0. dlogits may be logits, or null; grad_scale is not looked at then.
template <class T, int kWidth, bool kCapped, bool kRuns>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm)
    cross_entropy_kernel(float* __restrict__ loss,
                         T* dlogits,
                         const T* logits,
                         const std::int32_t* __restrict__ targets,
                         const float* __restrict__ grad_scale,
                         Scaling<T> s,
                         std::int64_t V,
                         int num_slots) {
  __shared__ float scratch[gpu::kWarpSize];
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const T* const row = logits + t * V;
  const std::int64_t target = targets[t];
  if (target < 0) {
    if (threadIdx.x == 0) {
      loss[t] = 0.0F;
    }
    if (dlogits != nullptr) {
      write_zeros<T, kWidth>(dlogits + t * V, V);
    }
    return;
  }
  // reduce
  RowPass<T, kWidth> pass(row, V, num_slots);
  const Running own = sum_row<T, kWidth, kCapped, kRuns>(pass, s);
  float target_logit = NAN;
  if (threadIdx.x == 0 && target < V) {
    target_logit = logit_at<T, kWidth, kCapped>(row, target, s);
  }
  // The barriers inside also order the read of the target's logit before the writes of the
  // gradient.
  const Running all = sum_block<T, kRuns>(own, s, scratch);
  const float logarithm = s.logarithm(all.sum);
  if (threadIdx.x == 0) {
    loss[t] = s.kNats * (logarithm - (target_logit - all.largest));
  }
  // write
  if (dlogits != nullptr) {
    const float less = s.kExact ? all.largest : all.largest + logarithm;
    pass.backwards(GradientOfRow<T, kWidth, kCapped>(
        dlogits + t * V, target, less, 1.0F / all.sum, *grad_scale, s));
  }
}

// One rank's columns. grid: T rows, block: a multiple of 32, shared: num_slots vectors a thread;
// kWidth 1, or V % kWidth == 0
template <class T, int kWidth, bool kCapped, bool kRuns>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm)
    cross_entropy_shard_kernel(float* __restrict__ lse,
                               float* __restrict__ target_logit,
                               const T* __restrict__ logits,
                               const std::int32_t* __restrict__ targets,
                               std::int64_t vocab_begin,
                               Scaling<T> s,
                               std::int64_t V,
                               int num_slots) {
  __shared__ float scratch[gpu::kWarpSize];
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const T* const row = logits + t * V;
  RowPass<T, kWidth> pass(row, V, num_slots);
  const Running all = sum_block<T, kRuns>(sum_row<T, kWidth, kCapped, kRuns>(pass, s), s, scratch);
  if (threadIdx.x == 0) {
    const std::int64_t target = targets[t] - vocab_begin;
    const bool is_here = targets[t] >= 0 && target >= 0 && target < V;
    lse[t] = s.kNats * (all.largest + s.logarithm(all.sum));
    target_logit[t] = is_here ? s.kNats * logit_at<T, kWidth, kCapped>(row, target, s) : 0.0F;
  }
}

// A thread takes a token. grid: T / kJoinThreads, block: kJoinThreads
__global__ void cross_entropy_join_kernel(float* __restrict__ lse,
                                          float* __restrict__ target_logit,
                                          const float* __restrict__ shard_lse,
                                          const float* __restrict__ shard_target,
                                          std::int64_t P,
                                          std::int64_t T) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kJoinThreads + threadIdx.x;
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

// grid: T rows, block: a multiple of 32, shared: num_slots vectors a thread; kWidth 1, or
// V % kWidth == 0. dlogits may be logits, or null; grad_scale is not looked at then.
template <class T, int kWidth, bool kCapped>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm)
    cross_entropy_gradient_kernel(float* __restrict__ loss,
                                  T* dlogits,
                                  const T* logits,
                                  const std::int32_t* __restrict__ targets,
                                  const float* __restrict__ lse,
                                  const float* __restrict__ target_logit,
                                  const float* __restrict__ grad_scale,
                                  std::int64_t vocab_begin,
                                  Scaling<T> s,
                                  std::int64_t V,
                                  int num_slots) {
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const bool counts = targets[t] >= 0;
  if (threadIdx.x == 0) {
    loss[t] = counts ? lse[t] - target_logit[t] : 0.0F;
  }
  if (dlogits == nullptr) {
    return;
  }
  if (counts) {
    RowPass<T, kWidth> pass(logits + t * V, V, num_slots);
    pass.forwards(GradientOfRow<T, kWidth, kCapped>(
        dlogits + t * V, targets[t] - vocab_begin, lse[t] * s.kUnit, 1.0F, *grad_scale, s));
  } else {
    write_zeros<T, kWidth>(dlogits + t * V, V);
  }
}

// How blocks pass rows, and a thread's slots.
struct RowLaunch {
  Launch launch;
  int num_slots;
};

// `slot_bytes`: 0 where threads have no slots. `twice`: rows are read twice, and kept while there
// is room.
RowLaunch choose_launch(std::int64_t T,
                        std::int64_t num_vectors,
                        std::int64_t slot_bytes,
                        bool twice,
                        std::size_t shared_bytes_per_block,
                        Stream stream) {
  const std::int64_t threads = whole_warps(ceil_div(num_vectors, kAhead), kMaxThreads);
  std::int64_t num_slots = 0;
  if (slot_bytes > 0) {
    const auto room = static_cast<std::int64_t>(shared_bytes_per_block) - kScratchBytes;
    num_slots = twice ? std::min(ceil_div(num_vectors, threads), room / (threads * slot_bytes)) : 0;
    num_slots = std::max<std::int64_t>(num_slots, kAhead);
  }
  return {.launch = {.grid = {.x = T},
                     .block = {.x = threads},
                     .shared_bytes = static_cast<std::size_t>(num_slots * threads * slot_bytes),
                     .stream = stream},
          .num_slots = static_cast<int>(num_slots)};
}

// Whether an op reads a row twice.
bool passes_twice(const CrossEntropy& op) {
  return op.dlogits_TV.present();
}
bool passes_twice(const CrossEntropyShard& /*op*/) {
  return false;
}
bool passes_twice(const CrossEntropyGradient& /*op*/) {
  return false;
}

template <class T, int kWidth, bool kCapped, bool kRuns>
void launch_rows(const CrossEntropy& op, const RowLaunch& rows) {
  launch(cross_entropy_kernel<T, kWidth, kCapped, kRuns>,
         rows.launch,
         op.loss_T.as<float>(),
         or_null<T>(op.dlogits_TV),
         op.logits_TV.as<T>(),
         op.targets_T.as<std::int32_t>(),
         or_null<float>(op.grad_scale_1),
         Scaling<T>(op.multiplier, op.cap),
         op.logits_TV.dim(1),
         rows.num_slots);
}

template <class T, int kWidth, bool kCapped, bool kRuns>
void launch_rows(const CrossEntropyShard& op, const RowLaunch& rows) {
  launch(cross_entropy_shard_kernel<T, kWidth, kCapped, kRuns>,
         rows.launch,
         op.lse_T.as<float>(),
         op.target_T.as<float>(),
         op.logits_TV.as<T>(),
         op.targets_T.as<std::int32_t>(),
         op.vocab_begin,
         Scaling<T>(op.multiplier, op.cap),
         op.logits_TV.dim(1),
         rows.num_slots);
}

template <class T, int kWidth, bool kCapped, bool kRuns>
void launch_rows(const CrossEntropyGradient& op, const RowLaunch& rows) {
  launch(cross_entropy_gradient_kernel<T, kWidth, kCapped>,
         rows.launch,
         op.loss_T.as<float>(),
         or_null<T>(op.dlogits_TV),
         op.logits_TV.as<T>(),
         op.targets_T.as<std::int32_t>(),
         op.lse_T.as<float>(),
         op.target_T.as<float>(),
         or_null<float>(op.grad_scale_1),
         op.vocab_begin,
         Scaling<T>(op.multiplier, op.cap),
         op.logits_TV.dim(1),
         rows.num_slots);
}

// A block a row, in the width and the variant that the operands allow.
template <class Op>
void launch_op(const Op& op, Stream stream) {
  visit_gpu_float(op.logits_TV.dtype, [&]<class T>() {
    constexpr int kVector = gpu::kVectorWidth<T>;
    const std::int64_t V = op.logits_TV.dim(1);
    const auto with_width = [&]<int kWidth>() {
      const RowLaunch rows = choose_launch(op.logits_TV.dim(0),
                                           ceil_div(V, kWidth),
                                           RowPass<T, kWidth>::kSlotBytes,
                                           passes_twice(op),
                                           this_device().shared_bytes_per_block,
                                           stream);
      if (op.cap > 0.0F && op.cap <= kLargestFixedCap && !Scaling<T>::kExact) {
        // No maximum runs: kExact is false here. Of f32, which never comes here, it is true, so
        // that this names the next branch's kernel and compiles no other.
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
         {.grid = {.x = ceil_div(T, kJoinThreads)},
          .block = {.x = kJoinThreads},
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
