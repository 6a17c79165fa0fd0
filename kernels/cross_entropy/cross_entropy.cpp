// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/scratch.h"
#include "kernels/or_null.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Logits that one chunk computes: about 10 us of work, well above the cost of handing it out.
constexpr std::int64_t kGrainElements = 16384;

void check_cap(const OpCheck& check, float cap) {
  check.condition(cap >= 0.0F, [&] {
    return "cap is " + std::to_string(cap) +
           " (it bounds the logits' size); use a positive one, or 0 for none";
  });
}

// Needed for the gradient alone.
void check_grad_scale(const OpCheck& check,
                      const TensorView& dlogits_TV,
                      const TensorView& grad_scale_1,
                      DType sums) {
  if (dlogits_TV.present()) {
    check.tensor("grad_scale_1", grad_scale_1, {1}, sums);
  } else {
    check.optional_tensor("grad_scale_1", grad_scale_1, {1}, sums);
  }
}

OpCheck check(const CrossEntropy& op, Stream stream) {
  OpCheck check("cross_entropy", stream);
  check.num_dims("logits_TV", op.logits_TV, 2);
  const DType dtype = op.logits_TV.dtype;
  const std::int64_t T = op.logits_TV.dim(0);
  const std::int64_t V = op.logits_TV.dim(1);
  check.float_dtype("logits_TV", dtype);
  check.tensor("logits_TV", op.logits_TV, {T, V}, dtype);
  check.optional_tensor("dlogits_TV", op.dlogits_TV, {T, V}, dtype);
  check.tensor("loss_T", op.loss_T, {T}, accumulation_dtype(dtype));
  check.tensor("targets_T", op.targets_T, {T}, DType::i32);
  check_grad_scale(check, op.dlogits_TV, op.grad_scale_1, accumulation_dtype(dtype));
  check_cap(check, op.cap);
  return check;
}

// What the two ops that read one rank's columns have in common.
void check_shard(const OpCheck& check,
                 const TensorView& logits_TV,
                 const TensorView& targets_T,
                 const TensorView& lse_T,
                 const TensorView& target_T,
                 float cap,
                 std::int64_t vocab_begin) {
  check.num_dims("logits_TV", logits_TV, 2);
  const DType dtype = logits_TV.dtype;
  const std::int64_t T = logits_TV.dim(0);
  const std::int64_t V = logits_TV.dim(1);
  check.float_dtype("logits_TV", dtype);
  check.tensor("logits_TV", logits_TV, {T, V}, dtype);
  check.tensor("targets_T", targets_T, {T}, DType::i32);
  check.tensor("lse_T", lse_T, {T}, accumulation_dtype(dtype));
  check.tensor("target_T", target_T, {T}, accumulation_dtype(dtype));
  check_cap(check, cap);
  check.condition(V >= 1 && vocab_begin >= 0, [&] {
    return std::to_string(V) + " columns from " + std::to_string(vocab_begin) +
           " are not a part of a vocabulary; a rank has at least one column";
  });
}

OpCheck check(const CrossEntropyShard& op, Stream stream) {
  OpCheck check("cross_entropy_shard", stream);
  check_shard(check, op.logits_TV, op.targets_T, op.lse_T, op.target_T, op.cap, op.vocab_begin);
  return check;
}

OpCheck check(const CrossEntropyJoin& op, Stream stream) {
  OpCheck check("cross_entropy_join", stream);
  check.num_dims("lse_PT", op.lse_PT, 2);
  const std::int64_t P = op.lse_PT.dim(0);
  const std::int64_t T = op.lse_PT.dim(1);
  check.float_dtype("lse_PT", op.lse_PT.dtype);
  const DType sums = accumulation_dtype(op.lse_PT.dtype);
  check.condition(P >= 1, "lse_PT has no rows (each is one rank's); give at least one");
  check.tensor("lse_T", op.lse_T, {T}, sums);
  check.tensor("target_T", op.target_T, {T}, sums);
  check.tensor("lse_PT", op.lse_PT, {P, T}, sums);
  check.tensor("target_PT", op.target_PT, {P, T}, sums);
  return check;
}

OpCheck check(const CrossEntropyGradient& op, Stream stream) {
  OpCheck check("cross_entropy_gradient", stream);
  check_shard(check, op.logits_TV, op.targets_T, op.lse_T, op.target_T, op.cap, op.vocab_begin);
  const std::int64_t T = op.logits_TV.dim(0);
  check.optional_tensor("dlogits_TV", op.dlogits_TV, {T, op.logits_TV.dim(1)}, op.logits_TV.dtype);
  check.tensor("loss_T", op.loss_T, {T}, op.lse_T.dtype);
  check_grad_scale(check, op.dlogits_TV, op.grad_scale_1, op.lse_T.dtype);
  return check;
}

// The logits that the softmax is taken of.
template <class Acc>
struct Scaling {
  Acc multiplier;
  Acc cap;
  Acc scale;  // of the gradient by a raw logit, but for the cap's slope
};

// Of the gradient by a raw logit, but for the cap's slope; 0 where there is no gradient.
template <class Acc, class Op>
Acc gradient_scale(const Op& op) {
  return op.dlogits_TV.present() ? op.grad_scale_1.template as<Acc>()[0] * op.multiplier : Acc{0};
}

template <class T>
void scaled_logits(Accumulator<T>* l, const T* logits, Scaling<Accumulator<T>> s, std::int64_t V) {
  using Acc = Accumulator<T>;
  if (s.cap > 0) {
    const Acc inner = s.multiplier / s.cap;
#pragma omp simd
    for (std::int64_t v = 0; v < V; ++v) {
      l[v] = s.cap * cpu::tanh(inner * static_cast<Acc>(logits[v]));
    }
  } else {
#pragma omp simd
    for (std::int64_t v = 0; v < V; ++v) {
      l[v] = s.multiplier * static_cast<Acc>(logits[v]);
    }
  }
}

// Never -inf, so that columns that are all masked sum up to 0 and not to exp(-inf + inf). A NaN may
// be lost in the maximum and is not in the sum that follows.
template <class Acc>
Acc maximum(const Acc* l, std::int64_t V) {
  Acc largest = std::numeric_limits<Acc>::lowest();
#pragma omp simd reduction(max : largest)
  for (std::int64_t v = 0; v < V; ++v) {
    largest = largest < l[v] ? l[v] : largest;
  }
  return largest;
}

// In pieces: one sum over a large vocabulary would lose more in f32 than the exponentials do.
template <class Acc>
Acc sum_of_exp(const Acc* l, Acc largest, std::int64_t V) {
  constexpr std::int64_t kPiece = 1024;
  Acc sum = 0;
  for (std::int64_t first = 0; first < V; first += kPiece) {
    const std::int64_t end = std::min(V, first + kPiece);
    Acc piece = 0;
#pragma omp simd reduction(+ : piece)
    for (std::int64_t v = first; v < end; ++v) {
      piece += cpu::exp(l[v] - largest);
    }
    sum += piece;
  }
  return sum;
}

// scale * (e^(l - shift) / sum - onehot) * dl/dlogits; a target outside [0, V) is another rank's.
template <class T>
void gradient(T* dlogits,
              const Accumulator<T>* l,
              std::int64_t target,
              Accumulator<T> shift,
              Accumulator<T> sum,
              Scaling<Accumulator<T>> s,
              std::int64_t V) {
  using Acc = Accumulator<T>;
  const bool has_cap = s.cap > 0;  // without one a logit of -inf must not meet a 0
  const Acc per_cap = has_cap ? 1 / s.cap : Acc{0};
  const auto slope = [&](Acc logit) {
    const Acc ratio = has_cap ? logit * per_cap : Acc{0};
    return 1 - ratio * ratio;
  };
  const Acc factor = s.scale / sum;
#pragma omp simd
  for (std::int64_t v = 0; v < V; ++v) {
    dlogits[v] = static_cast<T>(factor * cpu::exp(l[v] - shift) * slope(l[v]));
  }
  if (target < 0 || target >= V) {
    return;
  }
  // Rewritten from the unrounded value, so that the row still rounds once.
  const Acc other = cpu::exp(l[target] - shift) / sum - 1;
  dlogits[target] = static_cast<T>(s.scale * other * slope(l[target]));
}

// Calls visit(t, l) for each row, with scratch of V elements, on all threads.
template <class Acc, class Visit>
void for_each_row(std::int64_t num_rows, std::int64_t V, const Visit& visit) {
  const std::int64_t grain =
      std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, V));
  const cpu::ThreadScratch scratch(cpu::scratch_bytes<Acc>(V));
  parallel_ranges(num_rows, grain, [&](std::int64_t begin, std::int64_t end) {
    Acc* const l = scratch.mine().template take<Acc>(V);
    for (std::int64_t t = begin; t < end; ++t) {
      visit(t, l);
    }
  });
}

template <class T>
void forward(const CrossEntropy& op) {
  using Acc = Accumulator<T>;
  const std::int64_t T_ = op.logits_TV.dim(0);
  const std::int64_t V = op.logits_TV.dim(1);
  const T* const logits = op.logits_TV.as<T>();
  const auto* const targets = op.targets_T.as<std::int32_t>();
  Acc* const loss = op.loss_T.as<Acc>();
  T* const dlogits = or_null<T>(op.dlogits_TV);
  for (std::int64_t t = 0; t < T_; ++t) {
    if (targets[t] >= V) {
      throw ContractError("cross_entropy: target " + std::to_string(targets[t]) + " of row " +
                          std::to_string(t) + " is not below the vocabulary's " +
                          std::to_string(V) +
                          " (it has no logit); use a negative one to skip a row");
    }
  }
  const Scaling<Acc> scaling{
      .multiplier = op.multiplier, .cap = op.cap, .scale = gradient_scale<Acc>(op)};
  for_each_row<Acc>(T_, V, [&](std::int64_t t, Acc* l) {
    const std::int64_t target = targets[t];
    if (target < 0) {
      loss[t] = 0;
      if (dlogits != nullptr) {
        std::fill_n(dlogits + t * V, V, static_cast<T>(0.0F));
      }
      return;
    }
    scaled_logits(l, logits + t * V, scaling, V);
    const Acc largest = maximum(l, V);
    const Acc sum = sum_of_exp(l, largest, V);
    loss[t] = std::log(sum) - (l[target] - largest);
    if (dlogits != nullptr) {
      gradient(dlogits + t * V, l, target, largest, sum, scaling, V);
    }
  });
}

template <class T>
void shard(const CrossEntropyShard& op) {
  using Acc = Accumulator<T>;
  const std::int64_t V = op.logits_TV.dim(1);
  const auto* const targets = op.targets_T.as<std::int32_t>();
  const Scaling<Acc> scaling{.multiplier = op.multiplier, .cap = op.cap, .scale = 0};
  for_each_row<Acc>(op.logits_TV.dim(0), V, [&](std::int64_t t, Acc* l) {
    scaled_logits(l, op.logits_TV.as<T>() + t * V, scaling, V);
    const Acc largest = maximum(l, V);
    const std::int64_t target = targets[t] - op.vocab_begin;
    const bool is_here = targets[t] >= 0 && target >= 0 && target < V;
    op.lse_T.as<Acc>()[t] = largest + std::log(sum_of_exp(l, largest, V));
    op.target_T.as<Acc>()[t] = is_here ? l[target] : Acc{0};
  });
}

template <class Acc>
void join(const CrossEntropyJoin& op) {
  const std::int64_t P = op.lse_PT.dim(0);
  const std::int64_t T_ = op.lse_PT.dim(1);
  const Acc* const lse = op.lse_PT.as<Acc>();
  const Acc* const target = op.target_PT.as<Acc>();
  for (std::int64_t t = 0; t < T_; ++t) {
    Acc largest = std::numeric_limits<Acc>::lowest();  // as in maximum()
    for (std::int64_t p = 0; p < P; ++p) {
      largest = std::max(largest, lse[p * T_ + t]);
    }
    Acc targets = target[t];
    for (std::int64_t p = 1; p < P; ++p) {
      targets += target[p * T_ + t];
    }
    Acc sum = 0;
    for (std::int64_t p = 0; p < P; ++p) {
      sum += cpu::exp(lse[p * T_ + t] - largest);
    }
    op.lse_T.as<Acc>()[t] = largest + std::log(sum);
    op.target_T.as<Acc>()[t] = targets;
  }
}

template <class T>
void shard_gradient(const CrossEntropyGradient& op) {
  using Acc = Accumulator<T>;
  const std::int64_t V = op.logits_TV.dim(1);
  const auto* const targets = op.targets_T.as<std::int32_t>();
  const Acc* const lse = op.lse_T.as<Acc>();
  T* const dlogits = or_null<T>(op.dlogits_TV);
  const Scaling<Acc> scaling{
      .multiplier = op.multiplier, .cap = op.cap, .scale = gradient_scale<Acc>(op)};
  for_each_row<Acc>(op.logits_TV.dim(0), V, [&](std::int64_t t, Acc* l) {
    const bool counts = targets[t] >= 0;
    op.loss_T.as<Acc>()[t] = counts ? lse[t] - op.target_T.as<Acc>()[t] : Acc{0};
    if (dlogits == nullptr) {
      return;
    }
    if (!counts) {
      std::fill_n(dlogits + t * V, V, static_cast<T>(0.0F));
      return;
    }
    scaled_logits(l, op.logits_TV.as<T>() + t * V, scaling, V);
    gradient(dlogits + t * V, l, targets[t] - op.vocab_begin, lse[t], Acc{1}, scaling, V);
  });
}

}  // namespace

void cross_entropy(const CrossEntropy& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::cross_entropy(op, stream);
  }
  visit_float(op.logits_TV.dtype, [&]<class T>() { forward<T>(op); });
}

void cross_entropy_shard(const CrossEntropyShard& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::cross_entropy_shard(op, stream);
  }
  visit_float(op.logits_TV.dtype, [&]<class T>() { shard<T>(op); });
}

void cross_entropy_join(const CrossEntropyJoin& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::cross_entropy_join(op, stream);
  }
  visit_float(op.lse_T.dtype, [&]<class T>() { join<Accumulator<T>>(op); });
}

void cross_entropy_gradient(const CrossEntropyGradient& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::cross_entropy_gradient(op, stream);
  }
  visit_float(op.logits_TV.dtype, [&]<class T>() { shard_gradient<T>(op); });
}

}  // namespace memphis::kernels
