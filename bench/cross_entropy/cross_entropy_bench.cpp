// SPDX-License-Identifier: Apache-2.0
#include "bench/cross_entropy/cross_entropy_cases.h"
#include "bench/random_operand.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace memphis::bench {
namespace {

// Not in place, whatever the case says: repeated calls would take the gradient of a gradient.
void register_case(const CrossEntropyCase& c, const Target& target) {
  const TensorSpec rows({c.num_tokens, c.vocab_size}, target.dtype);
  register_op_benchmark(
      {.op = "cross_entropy",
       .shape = shape_of(c),
       .device = target.device,
       .dtype = target.dtype,
       .cost = {.bytes = 2 * static_cast<double>(rows.bytes())},
       .setup = [c, target, rows]() -> std::function<void(Stream)> {
         const auto logits = random_operand(rows, target.device);
         const auto dlogits = random_operand(rows, target.device);
         const auto loss = random_operand({{c.num_tokens}, DType::f32}, target.device);
         const auto grad_scale = random_operand({{1}, DType::f32}, target.device);
         const auto targets = std::make_shared<FilledTensor>(
             TensorSpec({c.num_tokens}, DType::i32),
             target.device,
             random_integers(c.num_tokens, "targets", 0, c.vocab_size));
         return [=](Stream stream) {
           kernels::cross_entropy({.loss_T = *loss,
                                   .dlogits_TV = *dlogits,
                                   .logits_TV = *logits,
                                   .targets_T = *targets,
                                   .grad_scale_1 = *grad_scale,
                                   .multiplier = c.multiplier,
                                   .cap = c.cap},
                                  stream);
         };
       }});
}

const bool kRegistered = [] {
  for (const CrossEntropyCase& c : cross_entropy_cases()) {
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
