// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/adamw/adamw.h"

namespace memphis::kernels {

// The scalars of a run, formed in f64 and rounded once: 1 - beta2 loses its digits in f32.
template <class A>
struct AdamWCoefficients {
  static constexpr A kNormFloor = static_cast<A>(1e-6);  // keeps the clip of a zero gradient finite

  A beta1;
  A one_minus_beta1;
  A beta2;
  A one_minus_beta2;
  A eps;
  A weight_decay;
  A clip_norm;
};

// Those of a step, as they lie in AdamW::rates_3.
template <class A>
struct AdamWRates {
  A learning_rate;
  A m_correction;  // 1 / (1 - beta1^step)
  A v_correction;  // 1 / (1 - beta2^step)
};

template <class A>
AdamWCoefficients<A> adamw_coefficients(const AdamW& op) {
  return {.beta1 = static_cast<A>(op.beta1),
          .one_minus_beta1 = static_cast<A>(1.0 - op.beta1),
          .beta2 = static_cast<A>(op.beta2),
          .one_minus_beta2 = static_cast<A>(1.0 - op.beta2),
          .eps = static_cast<A>(op.eps),
          .weight_decay = static_cast<A>(op.weight_decay),
          .clip_norm = static_cast<A>(op.clip_norm)};
}

}  // namespace memphis::kernels
