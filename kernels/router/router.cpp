// SPDX-License-Identifier: Apache-2.0
#include "kernels/router/router.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/cpu/math.h"
#include "kernels/or_null.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Multiplications that one chunk does: about 10 us of work, well above the cost of handing it out.
constexpr std::int64_t kGrainProducts = 131072;
constexpr std::int64_t kRunColumns = 512;  // of a run summed at a time: eight experts' stay in L1
constexpr std::int64_t kMaxGpuExperts = 128;  // four for each lane of a warp

struct Shape {
  std::int64_t B;  // sequences
  std::int64_t T;  // tokens
  std::int64_t D;
  std::int64_t E;
  std::int64_t K;
  std::int64_t S;  // tokens of a sequence

  std::int64_t grain_tokens() const {
    return std::max<std::int64_t>(1, kGrainProducts / std::max<std::int64_t>(1, D * E));
  }
};

void check_experts(const OpCheck& check, std::int64_t K, std::int64_t E, Stream stream) {
  check.condition(K >= 1 && K <= E, [&] {
    return std::to_string(K) + " experts per token of " + std::to_string(E) +
           " (a token goes to distinct ones); use 1 to the number of experts";
  });
  check.condition(stream.device == Device::cpu || E <= kMaxGpuExperts, [&] {
    return std::to_string(E) + " experts (a warp holds a token's logits); use at most " +
           std::to_string(kMaxGpuExperts) + " on a GPU";
  });
}

template <class Op>
Shape check_shape(const OpCheck& check, const Op& op, Stream stream) {
  check.num_dims("x_TD", op.x_TD, 2);
  check.num_dims("weight_ED", op.weight_ED, 2);
  check.num_dims("experts_TK", op.experts_TK, 2);
  check.num_dims("counts_BE", op.counts_BE, 2);
  const std::int64_t B = op.counts_BE.dim(0);
  const std::int64_t T = op.x_TD.dim(0);
  const std::int64_t D = op.x_TD.dim(1);
  const std::int64_t E = op.weight_ED.dim(0);
  const std::int64_t K = op.experts_TK.dim(1);
  check.float_dtype("x_TD", op.x_TD.dtype);
  check_experts(check, K, E, stream);
  check.condition(B == 0 ? T == 0 : T % B == 0, [&] {
    return std::to_string(T) + " tokens in " + std::to_string(B) +
           " sequences (all are equally long); T must be a multiple of B";
  });
  constexpr std::int64_t kMaxSequence = std::int64_t{1} << 24;
  check.condition(T <= B * kMaxSequence, [&] {
    return "a sequence of " + std::to_string(T / B) +
           " tokens (they are counted in f32, up to 2^24); cut it";
  });
  check.tensor("x_TD", op.x_TD, {T, D}, op.x_TD.dtype);
  check.tensor("weight_ED", op.weight_ED, {E, D}, accumulation_dtype(op.x_TD.dtype));
  check.tensor("experts_TK", op.experts_TK, {T, K}, DType::i32);
  check.tensor("counts_BE", op.counts_BE, {B, E}, DType::i32);
  check.tensor("valid_B", op.valid_B, {B}, DType::i32);
  check.optional_tensor("valid_T", op.valid_T, {T}, DType::u8);
  return {.B = B, .T = T, .D = D, .E = E, .K = K, .S = B == 0 ? 0 : T / B};
}

void check_cap(const OpCheck& check, float cap) {
  check.condition(cap >= 0.0F, [&] {
    return "cap is " + std::to_string(cap) +
           " (it bounds the logits' size); use a positive one, or 0 for none";
  });
}

Shape check(const OpCheck& check, const RouterForward& op, Stream stream) {
  const Shape shape = check_shape(check, op, stream);
  const DType sums = accumulation_dtype(op.x_TD.dtype);
  check.tensor("logits_TE", op.logits_TE, {shape.T, shape.E}, sums);
  check.tensor("probs_TE", op.probs_TE, {shape.T, shape.E}, sums);
  check.tensor("gates_TK", op.gates_TK, {shape.T, shape.K}, sums);
  check.tensor("probs_sum_BE", op.probs_sum_BE, {shape.B, shape.E}, sums);
  check.tensor("z_T", op.z_T, {shape.T}, sums);
  check_cap(check, op.cap);
  return shape;
}

OpCheck check(const RouterBalance& op, Stream stream) {
  OpCheck check("router_balance", stream);
  check.num_dims("counts_BE", op.counts_BE, 2);
  const std::int64_t B = op.counts_BE.dim(0);
  const std::int64_t E = op.counts_BE.dim(1);
  const DType dtype = accumulation_dtype(op.balance_B.dtype);
  check.float_dtype("balance_B", dtype);
  check_experts(check, op.experts_per_token, E, stream);
  check.tensor("balance_B", op.balance_B, {B}, dtype);
  check.tensor("counts_BE", op.counts_BE, {B, E}, DType::i32);
  check.tensor("probs_sum_BE", op.probs_sum_BE, {B, E}, dtype);
  check.tensor("valid_B", op.valid_B, {B}, DType::i32);
  return check;
}

Shape check(const OpCheck& check, const RouterBackward& op, Stream stream) {
  const Shape shape = check_shape(check, op, stream);
  const DType sums = accumulation_dtype(op.x_TD.dtype);
  check.num_dims("partial_PED", op.partial_PED, 3);
  const std::int64_t P = op.partial_PED.dim(0);
  check.condition(P >= 1,
                  "partial_PED has no rows (a run of tokens sums into each); give at least one");
  check.tensor("dx_TD", op.dx_TD, {shape.T, shape.D}, op.x_TD.dtype);
  check.tensor("dweight_ED", op.dweight_ED, {shape.E, shape.D}, sums);
  check.tensor("dlogits_TE", op.dlogits_TE, {shape.T, shape.E}, sums);
  check.tensor("partial_PED", op.partial_PED, {P, shape.E, shape.D}, sums);
  check.tensor("loss_scales_2", op.loss_scales_2, {2}, sums);
  check.tensor("dgates_TK", op.dgates_TK, {shape.T, shape.K}, sums);
  check.tensor("logits_TE", op.logits_TE, {shape.T, shape.E}, sums);
  check.tensor("probs_TE", op.probs_TE, {shape.T, shape.E}, sums);
  check_cap(check, op.cap);
  return shape;
}

template <class Acc>
Acc capped(Acc logit, Acc cap) {
  return cap > 0 ? cap * cpu::tanh(logit / cap) : logit;
}

// Writes e^(l - max l) to `out` and returns their sum; `largest` receives the maximum. A NaN may be
// lost in the maximum and is not in the sum.
template <class Acc>
Acc exponentials(Acc* out, const Acc* l, std::int64_t E, Acc& largest) {
  largest = l[0];
  for (std::int64_t e = 1; e < E; ++e) {
    largest = largest < l[e] ? l[e] : largest;
  }
  Acc sum = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    out[e] = cpu::exp(l[e] - largest);
    sum += out[e];
  }
  return sum;
}

// logsumexp(z), with `scratch` of E elements left as e^(z - max z) and their sum in `sum`.
template <class Acc>
Acc log_sum_exp(Acc* scratch, const Acc* z, std::int64_t E, Acc& sum) {
  Acc largest;
  sum = exponentials(scratch, z, E, largest);
  return largest + std::log(sum);
}

// The K largest of P, descending, equal ones by index. Where P is NaN the experts are 0 .. K-1: the
// indices stay usable and the gates show it.
template <class Acc>
void choose_experts(
    Acc* gates, std::int32_t* experts, const Acc* probs, std::int64_t E, std::int64_t K) {
  for (std::int64_t k = 0; k < K; ++k) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < E; ++e) {
      const bool taken = std::find(experts, experts + k, e) != experts + k;
      if (!taken && (best < 0 || probs[e] > probs[best])) {
        best = e;
      }
    }
    experts[k] = static_cast<std::int32_t>(best);
    gates[k] = probs[best];
  }
}

template <class T>
void forward(const RouterForward& op, const Shape& shape) {
  using Acc = Accumulator<T>;
  const auto [B, T_, D, E, K, S] = shape;
  const T* const x = op.x_TD.as<T>();
  const Acc* const weight = op.weight_ED.as<Acc>();
  Acc* const logits = op.logits_TE.as<Acc>();
  Acc* const probs = op.probs_TE.as<Acc>();
  Acc* const gates = op.gates_TK.as<Acc>();
  auto* const experts = op.experts_TK.as<std::int32_t>();
  auto* const counts = op.counts_BE.as<std::int32_t>();
  Acc* const probs_sum = op.probs_sum_BE.as<Acc>();
  auto* const num_valid = op.valid_B.as<std::int32_t>();
  Acc* const z_loss = op.z_T.as<Acc>();
  const auto* const valid = or_null<std::uint8_t>(op.valid_T);
  const auto is_valid = [&](std::int64_t t) { return valid == nullptr || valid[t] != 0; };

  const auto route = [&](std::int64_t t) {
    const T* const row = x + t * D;
    Acc* const z = logits + t * E;
    Acc* const p = probs + t * E;
    for (std::int64_t e = 0; e < E; ++e) {
      const Acc* const w = weight + e * D;
      Acc sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t d = 0; d < D; ++d) {
        sum += static_cast<Acc>(row[d]) * w[d];
      }
      z[e] = sum;
    }
    Acc sum;
    const Acc lse = log_sum_exp(p, z, E, sum);
    z_loss[t] = is_valid(t) ? lse * lse : Acc{0};
    if (op.cap > 0) {
      for (std::int64_t e = 0; e < E; ++e) {
        p[e] = capped<Acc>(z[e], op.cap);
      }
      Acc largest;
      sum = exponentials(p, p, E, largest);
    }
    for (std::int64_t e = 0; e < E; ++e) {
      p[e] /= sum;
    }
    choose_experts(gates + t * K, experts + t * K, p, E, K);
  };
  parallel_ranges(T_, shape.grain_tokens(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      route(t);
    }
  });

  parallel_chunks(B, [&](std::int64_t b) {
    std::int32_t* const count = counts + b * E;
    std::fill_n(count, E, 0);
    num_valid[b] = 0;
    for (std::int64_t t = b * S; t < (b + 1) * S; ++t) {
      if (is_valid(t)) {
        ++num_valid[b];
        for (std::int64_t k = 0; k < K; ++k) {
          ++count[experts[t * K + k]];
        }
      }
    }
    for (std::int64_t e = 0; e < E; ++e) {
      Acc sum = 0;
      for (std::int64_t t = b * S; t < (b + 1) * S; ++t) {
        sum += is_valid(t) ? probs[t * E + e] : Acc{0};
      }
      probs_sum[b * E + e] = sum;
    }
  });
}

// One thread: a sequence costs E additions.
template <class Acc>
void balance(const RouterBalance& op) {
  const std::int64_t B = op.counts_BE.dim(0);
  const std::int64_t E = op.counts_BE.dim(1);
  const auto* const counts = op.counts_BE.as<std::int32_t>();
  const auto* const num_valid = op.valid_B.as<std::int32_t>();
  const Acc* const probs_sum = op.probs_sum_BE.as<Acc>();
  Acc* const out = op.balance_B.as<Acc>();
  const auto K = static_cast<Acc>(op.experts_per_token);
  for (std::int64_t b = 0; b < B; ++b) {
    Acc sum = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      sum += static_cast<Acc>(counts[b * E + e]) * probs_sum[b * E + e];
    }
    const auto n = static_cast<Acc>(num_valid[b]);
    out[b] = num_valid[b] == 0 ? Acc{0} : sum / n / n * static_cast<Acc>(E) / K;
  }
}

// dz of the tokens [begin, end).
template <class Acc>
void logit_gradients(const RouterBackward& op,
                     const Shape& shape,
                     std::int64_t begin,
                     std::int64_t end) {
  const auto [B, T_, D, E, K, S] = shape;
  const Acc* const dgates = op.dgates_TK.as<Acc>();
  const Acc* const logits = op.logits_TE.as<Acc>();
  const Acc* const probs = op.probs_TE.as<Acc>();
  const auto* const experts = op.experts_TK.as<std::int32_t>();
  const auto* const counts = op.counts_BE.as<std::int32_t>();
  const auto* const num_valid = op.valid_B.as<std::int32_t>();
  const auto* const valid = or_null<std::uint8_t>(op.valid_T);
  const Acc cap = op.cap;
  const Acc balance_scale = op.loss_scales_2.as<Acc>()[0];
  const Acc z_scale = op.loss_scales_2.as<Acc>()[1];
  for (std::int64_t t = begin; t < end; ++t) {
    const Acc* const z = logits + t * E;
    const Acc* const p = probs + t * E;
    const std::int32_t* const count = counts + t / S * E;
    Acc* const dz = op.dlogits_TE.as<Acc>() + t * E;
    const bool is_valid = valid == nullptr || valid[t] != 0;

    // What the z loss adds, which needs a softmax of its own where the logits are capped.
    Acc sum = 1;
    Acc z_factor = 0;
    if (is_valid && z_scale != 0) {
      const Acc lse = log_sum_exp(dz, z, E, sum);
      z_factor = 2 * z_scale * lse / sum;
    } else {
      std::fill_n(dz, E, Acc{0});
    }

    // balance_scale E f_e / n with f_e = count_e / (n K) and n K assignments.
    const std::int64_t assignments = std::int64_t{num_valid[t / S]} * K;
    const auto total = static_cast<Acc>(std::max<std::int64_t>(1, assignments));
    const Acc per_count =
        is_valid ? balance_scale * static_cast<Acc>(E) * static_cast<Acc>(K) / total / total
                 : Acc{0};
    const auto dprob = [&](std::int64_t e) {
      Acc value = per_count * static_cast<Acc>(count[e]);
      for (std::int64_t k = 0; k < K; ++k) {
        value += experts[t * K + k] == e ? dgates[t * K + k] : Acc{0};
      }
      return value;
    };
    Acc mean = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      mean += p[e] * dprob(e);
    }
    for (std::int64_t e = 0; e < E; ++e) {
      const Acc ratio = cap > 0 ? cpu::tanh(z[e] / cap) : Acc{0};
      dz[e] = p[e] * (dprob(e) - mean) * (1 - ratio * ratio) + z_factor * dz[e];
    }
  }
}

// dx of the tokens [begin, end), from their dz.
template <class T>
void input_gradients(const RouterBackward& op,
                     const Shape& shape,
                     std::int64_t begin,
                     std::int64_t end) {
  using Acc = Accumulator<T>;
  constexpr std::int64_t kBlock = 512;  // columns whose sums stay in L1
  const std::int64_t D = shape.D;
  const std::int64_t E = shape.E;
  const Acc* const weight = op.weight_ED.as<Acc>();
  for (std::int64_t t = begin; t < end; ++t) {
    const Acc* const dz = op.dlogits_TE.as<Acc>() + t * E;
    for (std::int64_t first = 0; first < D; first += kBlock) {
      const std::int64_t count = std::min(kBlock, D - first);
      T* const dx = op.dx_TD.as<T>() + t * D + first;
      Acc sums[kBlock] = {};
      for (std::int64_t e = 0; e < E; ++e) {
        const Acc* const w = weight + e * D + first;
        const Acc factor = dz[e];
#pragma omp simd
        for (std::int64_t d = 0; d < count; ++d) {
          sums[d] += factor * w[d];
        }
      }
#pragma omp simd
      for (std::int64_t d = 0; d < count; ++d) {
        dx[d] = static_cast<T>(op.accumulate ? static_cast<Acc>(dx[d]) + sums[d] : sums[d]);
      }
    }
  }
}

// partial[run] = dz^T x over the run's tokens, of kRunColumns columns from `first` on.
template <class T>
void sum_run(const RouterBackward& op,
             const Shape& shape,
             std::int64_t run_tokens,
             std::int64_t run,
             std::int64_t first) {
  using Acc = Accumulator<T>;
  const std::int64_t D = shape.D;
  const std::int64_t E = shape.E;
  const std::int64_t count = std::min(kRunColumns, D - first);
  const std::int64_t end = std::min((run + 1) * run_tokens, shape.T);
  Acc* const partial = op.partial_PED.as<Acc>() + run * E * D + first;
  for (std::int64_t e = 0; e < E; ++e) {
    std::fill_n(partial + e * D, count, Acc{0});
  }
  for (std::int64_t t = run * run_tokens; t < end; ++t) {
    const T* const row = op.x_TD.as<T>() + t * D + first;
    const Acc* const dz = op.dlogits_TE.as<Acc>() + t * E;
    for (std::int64_t e = 0; e < E; ++e) {
      Acc* const sums = partial + e * D;
      const Acc factor = dz[e];
#pragma omp simd
      for (std::int64_t d = 0; d < count; ++d) {
        sums[d] += factor * static_cast<Acc>(row[d]);
      }
    }
  }
}

template <class T>
void backward(const RouterBackward& op, const Shape& shape) {
  using Acc = Accumulator<T>;
  parallel_ranges(shape.T, shape.grain_tokens(), [&](std::int64_t begin, std::int64_t end) {
    logit_gradients<Acc>(op, shape, begin, end);
    input_gradients<T>(op, shape, begin, end);
  });
  const std::int64_t P = op.partial_PED.dim(0);
  const std::int64_t run_tokens = (shape.T + P - 1) / P;
  const std::int64_t num_runs = run_tokens == 0 ? 0 : (shape.T + run_tokens - 1) / run_tokens;
  const std::int64_t num_blocks = (shape.D + kRunColumns - 1) / kRunColumns;
  parallel_chunks(num_runs * num_blocks, [&](std::int64_t chunk) {
    sum_run<T>(op, shape, run_tokens, chunk / num_blocks, chunk % num_blocks * kRunColumns);
  });
  const std::int64_t num_weights = shape.E * shape.D;
  Acc* const dweight = op.dweight_ED.as<Acc>();
  const Acc* const partial = op.partial_PED.as<Acc>();
  const bool add = op.weight_gradient == WeightGradient::add;
  constexpr std::int64_t kBlock = 1024;  // weights whose sums stay in L1
  parallel_ranges(num_weights, kBlock, [&](std::int64_t begin, std::int64_t end) {
    Acc block[kBlock] = {};
    for (std::int64_t run = 0; run < num_runs; ++run) {
      const Acc* const sums = partial + run * num_weights + begin;
#pragma omp simd
      for (std::int64_t i = 0; i < end - begin; ++i) {
        block[i] += sums[i];
      }
    }
    // Last: dweight may be large, and each addition to it rounds by its size.
#pragma omp simd
    for (std::int64_t i = 0; i < end - begin; ++i) {
      dweight[begin + i] = add ? dweight[begin + i] + block[i] : block[i];
    }
  });
}

}  // namespace

void router_forward(const RouterForward& op, Stream stream) {
  const OpCheck call("router_forward", stream);
  const Shape shape = check(call, op, stream);
  call.product(shape.T, shape.E, shape.D);
  if (stream.device == Device::cuda) {
    return cuda::router_forward(op, stream);
  }
  visit_float(op.x_TD.dtype, [&]<class T>() { forward<T>(op, shape); });
}

void router_balance(const RouterBalance& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::router_balance(op, stream);
  }
  visit_float(op.balance_B.dtype, [&]<class T>() { balance<Accumulator<T>>(op); });
}

void router_backward(const RouterBackward& op, Stream stream) {
  const OpCheck call("router_backward", stream);
  const Shape shape = check(call, op, stream);
  call.product(shape.T, shape.D, 2 * shape.E);
  if (stream.device == Device::cuda) {
    return cuda::router_backward(op, stream);
  }
  visit_float(op.x_TD.dtype, [&]<class T>() { backward<T>(op, shape); });
}

}  // namespace memphis::kernels
