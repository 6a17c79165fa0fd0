// SPDX-License-Identifier: Apache-2.0
#include "kernels/adamw/adamw.h"

#include <cmath>
#include <string>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "kernels/adamw/adamw_coefficients.h"
#include "kernels/check.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Parameters of a thread's piece of work: some 10 us, far above the cost of handing it out.
constexpr std::int64_t kGrain = 16384;

void check_decay(const OpCheck& check, std::string_view name, double beta) {
  check.condition(beta >= 0.0 && beta < 1.0, [&] {
    return std::string(name) + " is " + std::to_string(beta) +
           " (it weighs the past against the present); use one in [0, 1)";
  });
}

OpCheck check(const AdamW& op, Stream stream) {
  OpCheck check("adamw", stream);
  check.num_dims("param_n", op.param_n, 1);
  check.float_dtype("param_n", op.param_n.dtype);
  const std::int64_t n = op.param_n.dim(0);
  const DType accumulation = accumulation_dtype(op.param_n.dtype);
  check.tensor("param_n", op.param_n, {n}, op.param_n.dtype);
  check.tensor("master_n", op.master_n, {n}, accumulation);
  check.tensor("m_n", op.m_n, {n}, accumulation);
  check.tensor("v_n", op.v_n, {n}, accumulation);
  check.tensor("grad_n", op.grad_n, {n}, accumulation);
  check.tensor("norm_1", op.norm_1, {1}, accumulation);
  check.tensor("rates_3", op.rates_3, {3}, accumulation);
  check_decay(check, "beta1", op.beta1);
  check_decay(check, "beta2", op.beta2);
  check.condition(op.clip_norm >= 0.0, [&] {
    return "clip_norm is " + std::to_string(op.clip_norm) +
           " (it bounds a norm); use a positive one, or 0 for none";
  });
  return check;
}

template <class T>
void update(const AdamW& op) {
  using A = Accumulator<T>;
  if (!std::isfinite(op.norm_1.as<A>()[0])) {
    return;
  }
  T* const param = op.param_n.as<T>();
  A* const master = op.master_n.as<A>();
  A* const m = op.m_n.as<A>();
  A* const v = op.v_n.as<A>();
  const A* const grad = op.grad_n.as<A>();
  const AdamWCoefficients<A> c = adamw_coefficients<A>(op);
  const A* const rates = op.rates_3.as<A>();
  const AdamWRates<A> r{
      .learning_rate = rates[0], .m_correction = rates[1], .v_correction = rates[2]};
  const A ratio = c.clip_norm / (op.norm_1.as<A>()[0] + AdamWCoefficients<A>::kNormFloor);
  const A clip = c.clip_norm > 0 && ratio < 1 ? ratio : A{1};

  parallel_ranges(op.param_n.dim(0), kGrain, [&](std::int64_t begin, std::int64_t end) {
  // `omp simd`, not just `restrict`: param may be master, at the same index.
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      const A g = grad[i] * clip;
      m[i] = c.beta1 * m[i] + c.one_minus_beta1 * g;
      v[i] = c.beta2 * v[i] + c.one_minus_beta2 * g * g;
      const A denominator = std::sqrt(v[i] * r.v_correction) + c.eps;
      const A direction = m[i] * r.m_correction / denominator + c.weight_decay * master[i];
      master[i] -= r.learning_rate * direction;
      param[i] = static_cast<T>(master[i]);
    }
  });
}

}  // namespace

std::array<double, 3> adamw_rates(double learning_rate,
                                  double beta1,
                                  double beta2,
                                  std::int64_t step) {
  if (step < 1) {
    throw ContractError("adamw_rates: step is " + std::to_string(step) +
                        " (the bias corrections divide by zero before the first); count from 1");
  }
  const auto power = static_cast<double>(step);
  return {
      learning_rate, 1.0 / (1.0 - std::pow(beta1, power)), 1.0 / (1.0 - std::pow(beta2, power))};
}

void adamw(const AdamW& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::adamw(op, stream);
  }
  visit_float(op.param_n.dtype, [&]<class T>() { update<T>(op); });
}

}  // namespace memphis::kernels
