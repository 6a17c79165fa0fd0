// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "kernels/adamw/adamw.h"

namespace memphis::kernels {

// The scalars of a step, formed in f64 and rounded once: 1 - beta2^step loses its digits in f32 in
// the first steps, and 1 - beta2 with them.
template <class A>
struct AdamWCoefficients {
  static constexpr A kNormFloor = static_cast<A>(1e-6);  // keeps the clip of a zero gradient finite

  A learning_rate;
  A beta1;
  A one_minus_beta1;
  A m_correction;  // 1 / (1 - beta1^step)
  A beta2;
  A one_minus_beta2;
  A v_correction;  // 1 / (1 - beta2^step)
  A eps;
  A weight_decay;
  A clip_norm;
};

template <class A>
AdamWCoefficients<A> adamw_coefficients(const AdamW& op) {
  const auto step = static_cast<double>(op.step);
  return {.learning_rate = static_cast<A>(op.learning_rate),
          .beta1 = static_cast<A>(op.beta1),
          .one_minus_beta1 = static_cast<A>(1.0 - op.beta1),
          .m_correction = static_cast<A>(1.0 / (1.0 - std::pow(op.beta1, step))),
          .beta2 = static_cast<A>(op.beta2),
          .one_minus_beta2 = static_cast<A>(1.0 - op.beta2),
          .v_correction = static_cast<A>(1.0 / (1.0 - std::pow(op.beta2, step))),
          .eps = static_cast<A>(op.eps),
          .weight_decay = static_cast<A>(op.weight_decay),
          .clip_norm = static_cast<A>(op.clip_norm)};
}

}  // namespace memphis::kernels
