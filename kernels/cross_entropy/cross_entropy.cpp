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
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Logits that one chunk computes: about 10 us of work, well above the cost of handing it out.
constexpr std::int64_t kGrainElements = 16384;

void check(const CrossEntropy& op, Stream stream) {
  const OpCheck check("cross_entropy", stream);
  check.num_dims("logits_TV", op.logits_TV, 2);
  const DType dtype = op.logits_TV.dtype;
  const std::int64_t T = op.logits_TV.dim(0);
  const std::int64_t V = op.logits_TV.dim(1);
  check.float_dtype("logits_TV", dtype);
  check.tensor("logits_TV", op.logits_TV, {T, V}, dtype);
  check.optional_tensor("dlogits_TV", op.dlogits_TV, {T, V}, dtype);
  check.tensor("loss_T", op.loss_T, {T}, accumulation_dtype(dtype));
  check.tensor("targets_T", op.targets_T, {T}, DType::i32);
  check.condition(op.cap >= 0.0F, [&] {
    return "cap is " + std::to_string(op.cap) +
           " (it bounds the logits' size); use a positive one, or 0 for none";
  });
}

// The logits that the softmax is taken of.
template <class Acc>
struct Scaling {
  Acc multiplier;
  Acc cap;
  Acc scale;  // of the gradient by a raw logit, but for the cap's slope
};

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

// A NaN may be lost in the maximum and is not in the sum that follows.
template <class Acc>
Acc maximum(const Acc* l, std::int64_t V) {
  Acc largest = -std::numeric_limits<Acc>::infinity();
#pragma omp simd reduction(max : largest)
  for (std::int64_t v = 0; v < V; ++v) {
    largest = largest < l[v] ? l[v] : largest;
  }
  return largest;
}

template <class Acc>
Acc sum_of_exp(const Acc* l, Acc largest, std::int64_t V) {
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t v = 0; v < V; ++v) {
    sum += cpu::exp(l[v] - largest);
  }
  return sum;
}

template <class T>
void gradient(T* dlogits,
              const Accumulator<T>* l,
              std::int64_t target,
              Accumulator<T> largest,
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
    dlogits[v] = static_cast<T>(factor * cpu::exp(l[v] - largest) * slope(l[v]));
  }
  // Rewritten from the unrounded value, so that the row still rounds once.
  const Acc other = cpu::exp(l[target] - largest) / sum - 1;
  dlogits[target] = static_cast<T>(s.scale * other * slope(l[target]));
}

template <class T>
void forward(const CrossEntropy& op) {
  using Acc = Accumulator<T>;
  const std::int64_t T_ = op.logits_TV.dim(0);
  const std::int64_t V = op.logits_TV.dim(1);
  const T* const logits = op.logits_TV.as<T>();
  const auto* const targets = op.targets_T.as<std::int32_t>();
  Acc* const loss = op.loss_T.as<Acc>();
  T* const dlogits = op.dlogits_TV.present() ? op.dlogits_TV.as<T>() : nullptr;
  for (std::int64_t t = 0; t < T_; ++t) {
    if (targets[t] >= V) {
      throw ContractError("cross_entropy: target " + std::to_string(targets[t]) + " of row " +
                          std::to_string(t) + " is not below the vocabulary's " +
                          std::to_string(V) +
                          " (it has no logit); use a negative one to skip a row");
    }
  }
  const Scaling<Acc> scaling{.multiplier = op.multiplier,
                             .cap = op.cap,
                             .scale = static_cast<Acc>(op.grad_scale) * op.multiplier};
  const std::int64_t grain =
      std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, V));
  const cpu::ThreadScratch scratch(cpu::scratch_bytes<Acc>(V));
  parallel_ranges(T_, grain, [&](std::int64_t begin, std::int64_t end) {
    Acc* const l = scratch.mine().template take<Acc>(V);
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t target = targets[t];
      if (target < 0) {
        loss[t] = 0;
        if (dlogits != nullptr) {
          std::fill_n(dlogits + t * V, V, static_cast<T>(0.0F));
        }
        continue;
      }
      scaled_logits(l, logits + t * V, scaling, V);
      const Acc largest = maximum(l, V);
      const Acc sum = sum_of_exp(l, largest, V);
      loss[t] = std::log(sum) - (l[target] - largest);
      if (dlogits != nullptr) {
        gradient(dlogits + t * V, l, target, largest, sum, scaling, V);
      }
    }
  });
}

}  // namespace

void cross_entropy(const CrossEntropy& op, Stream stream) {
  check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::cross_entropy(op, stream);
  }
  visit_float(op.logits_TV.dtype, [&]<class T>() { forward<T>(op); });
}

}  // namespace memphis::kernels
