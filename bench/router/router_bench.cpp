// SPDX-License-Identifier: Apache-2.0
#include "bench/random_operand.h"
#include "bench/router/router_cases.h"
#include "kernels/router/router.h"

namespace memphis::bench {
namespace {

// The operands of both directions; backward reads what forward wrote.
struct Operands {
  std::shared_ptr<FilledTensor> x;
  std::shared_ptr<FilledTensor> weight;
  std::shared_ptr<FilledTensor> logits;
  std::shared_ptr<FilledTensor> probs;
  std::shared_ptr<FilledTensor> gates;
  std::shared_ptr<FilledTensor> experts;
  std::shared_ptr<FilledTensor> counts;
  std::shared_ptr<FilledTensor> probs_sum;
  std::shared_ptr<FilledTensor> valid;
  std::shared_ptr<FilledTensor> balance;
  std::shared_ptr<FilledTensor> z;
  std::shared_ptr<FilledTensor> dx;
  std::shared_ptr<FilledTensor> dweight;
  std::shared_ptr<FilledTensor> dlogits;
  std::shared_ptr<FilledTensor> partial;
  std::shared_ptr<FilledTensor> dgates;
  std::shared_ptr<FilledTensor> loss_scales;

  kernels::RouterForward forward(float cap) const {
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
            .cap = cap};
  }
  kernels::RouterBalance balances(const RouterCase& c) const {
    return {.balance_B = *balance,
            .counts_BE = *counts,
            .probs_sum_BE = *probs_sum,
            .valid_B = *valid,
            .experts_per_token = c.num_choices};
  }
  kernels::RouterBackward backward(const RouterCase& c) const {
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
};

Operands draw(const RouterCase& c, const Target& target) {
  const std::int64_t T = c.num_tokens();
  const auto operand = [&](const TensorSpec& spec) { return random_operand(spec, target.device); };
  const TensorSpec per_expert({T, c.num_experts}, DType::f32);
  const TensorSpec per_choice({T, c.num_choices}, DType::f32);
  const TensorSpec weights({c.num_experts, c.width}, DType::f32);
  const auto integers = [&](const TensorSpec& spec) {
    return std::make_shared<FilledTensor>(spec, target.device);
  };
  Operands o{.x = operand({{T, c.width}, target.dtype}),
             .weight = operand(weights),
             .logits = operand(per_expert),
             .probs = operand(per_expert),
             .gates = operand(per_choice),
             .experts = integers({{T, c.num_choices}, DType::i32}),
             .counts = integers({{c.num_sequences, c.num_experts}, DType::i32}),
             .probs_sum = operand({{c.num_sequences, c.num_experts}, DType::f32}),
             .valid = integers({{c.num_sequences}, DType::i32}),
             .balance = operand({{c.num_sequences}, DType::f32}),
             .z = operand({{T}, DType::f32}),
             .dx = operand({{T, c.width}, target.dtype}),
             .dweight = operand(weights),
             .dlogits = operand(per_expert),
             .partial = operand({{c.num_partials, c.num_experts, c.width}, DType::f32}),
             .dgates = operand(per_choice),
             .loss_scales = operand({{2}, DType::f32})};
  const OwnedStream stream(target.device);
  kernels::router_forward(o.forward(c.cap), stream.view());
  synchronize(stream.view());
  return o;
}

void register_case(const RouterCase& c, const Target& target) {
  const auto x_bytes =
      static_cast<double>(c.num_tokens() * c.width) * static_cast<double>(size_of(target.dtype));
  const auto flops = 2.0 * static_cast<double>(c.num_tokens() * c.width * c.num_experts);
  register_op_benchmark({.op = "router_forward",
                         .shape = shape_of(c),
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = {.bytes = x_bytes, .flops = flops},
                         .setup = [c, target]() -> std::function<void(Stream)> {
                           return [c, o = draw(c, target)](Stream stream) {
                             kernels::router_forward(o.forward(c.cap), stream);
                           };
                         }});
  register_op_benchmark(
      {.op = "router_balance",
       .shape = shape_of(c),
       .device = target.device,
       .dtype = DType::f32,
       .cost = {.bytes = 8.0 * static_cast<double>(c.num_sequences * c.num_experts)},
       .setup = [c, target]() -> std::function<void(Stream)> {
         return [c, o = draw(c, target)](Stream stream) {
           kernels::router_balance(o.balances(c), stream);
         };
       }});
  register_op_benchmark({.op = "router_backward",
                         .shape = shape_of(c),
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = {.bytes = x_bytes * (c.accumulate ? 3 : 2), .flops = 2 * flops},
                         .setup = [c, target]() -> std::function<void(Stream)> {
                           return [c, o = draw(c, target)](Stream stream) {
                             kernels::router_backward(o.backward(c), stream);
                           };
                         }});
}

const bool kRegistered = [] {
  for (const RouterCase& c : router_cases()) {
    if (!c.timed) {
      continue;
    }
    for (const Target& target : benchmark_targets(c.fits_cpu)) {
      register_case(c, target);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
