// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>

#include "bench/random_operand.h"
#include "bench/router/router_cases.h"
#include "kernels/router/router.h"

namespace memphis::bench {

// The operands of both directions, filled at random; backward() reads what forward() wrote.
struct RouterOperands {
  RouterOperands(const RouterCase& of, const Target& target)
      : c(of),
        x(random({c.num_tokens(), c.width}, target.dtype, target)),
        weight(random({c.num_experts, c.width}, DType::f32, target)),
        logits(random({c.num_tokens(), c.num_experts}, DType::f32, target)),
        probs(random({c.num_tokens(), c.num_experts}, DType::f32, target)),
        gates(random({c.num_tokens(), c.num_choices}, DType::f32, target)),
        experts(numbers({c.num_tokens(), c.num_choices}, target)),
        counts(numbers({c.num_sequences, c.num_experts}, target)),
        probs_sum(random({c.num_sequences, c.num_experts}, DType::f32, target)),
        valid(numbers({c.num_sequences}, target)),
        balance(random({c.num_sequences}, DType::f32, target)),
        z(random({c.num_tokens()}, DType::f32, target)),
        dx(random({c.num_tokens(), c.width}, target.dtype, target)),
        dweight(random({c.num_experts, c.width}, DType::f32, target)),
        dlogits(random({c.num_tokens(), c.num_experts}, DType::f32, target)),
        partial(random({c.num_partials, c.num_experts, c.width}, DType::f32, target)),
        dgates(random({c.num_tokens(), c.num_choices}, DType::f32, target)),
        loss_scales(random({2}, DType::f32, target)) {}

  kernels::RouterForward forward() const {
    return {.logits_TE = *logits,
            .probs_TE = *probs,
            .gates_TK = *gates,
            .experts_TK = *experts,
            .counts_BE = *counts,
            .probs_sum_BE = *probs_sum,
            .valid_B = *valid,
            .z_T = *z,
            .x_TD = *x,
            .weight_ED = *weight,
            .cap = c.cap};
  }
  kernels::RouterBalance balances() const {
    return {.balance_B = *balance,
            .counts_BE = *counts,
            .probs_sum_BE = *probs_sum,
            .valid_B = *valid,
            .experts_per_token = c.num_choices};
  }
  kernels::RouterBackward backward() const {
    return {.dx_TD = *dx,
            .dweight_ED = *dweight,
            .dlogits_TE = *dlogits,
            .partial_PED = *partial,
            .dgates_TK = *dgates,
            .logits_TE = *logits,
            .probs_TE = *probs,
            .experts_TK = *experts,
            .counts_BE = *counts,
            .valid_B = *valid,
            .x_TD = *x,
            .weight_ED = *weight,
            .loss_scales_2 = *loss_scales,
            .cap = c.cap,
            .accumulate = c.accumulate};
  }

  using Operand = std::shared_ptr<FilledTensor>;
  RouterCase c;
  Operand x, weight, logits, probs, gates, experts, counts, probs_sum, valid, balance, z, dx,
      dweight, dlogits, partial, dgates, loss_scales;

 private:
  using Shape = std::initializer_list<std::int64_t>;

  static Operand random(Shape shape, DType dtype, const Target& target) {
    return random_operand({shape, dtype}, target.device);
  }
  static Operand numbers(Shape shape, const Target& target) {
    return std::make_shared<FilledTensor>(TensorSpec(shape, DType::i32), target.device);
  }
};

}  // namespace memphis::bench
