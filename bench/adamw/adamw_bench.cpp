// SPDX-License-Identifier: Apache-2.0
#include "bench/adamw/adamw_cases.h"
#include "bench/random_operand.h"
#include "kernels/adamw/adamw.h"

namespace memphis::bench {
namespace {

void register_case(const AdamWCase& c, const Target& target) {
  const TensorSpec narrow({c.num_parameters}, target.dtype);
  const TensorSpec kept({c.num_parameters}, DType::f32);
  register_op_benchmark(
      {.op = "adamw",
       .shape = shape_of(c),
       .device = target.device,
       .dtype = target.dtype,
       .cost = {.bytes = static_cast<double>(narrow.bytes() + 7 * kept.bytes())},
       .setup = [=]() -> std::function<void(Stream)> {
         const auto param = random_operand(narrow, target.device);
         const auto master = random_operand(kept, target.device);
         const auto m = random_operand(kept, target.device);
         const auto v = random_operand(kept, target.device, true);
         const auto grad = random_operand(kept, target.device);
         const auto norm = random_operand({{1}, DType::f32}, target.device, true);
         const auto rates = random_operand({{3}, DType::f32}, target.device, true);
         return [=](Stream stream) {
           kernels::adamw({.param_n = *param,
                           .master_n = *master,
                           .m_n = *m,
                           .v_n = *v,
                           .grad_n = *grad,
                           .norm_1 = *norm,
                           .rates_3 = *rates,
                           .beta1 = 0.9,
                           .beta2 = 0.95,
                           .eps = 1e-8,
                           .weight_decay = 0.1,
                           .clip_norm = 1.0},
                          stream);
         };
       }});
}

const bool kRegistered = [] {
  for (const AdamWCase& c : adamw_cases()) {
    if (!c.timed) {
      continue;
    }
    for (const Target& target : benchmark_targets(c.tested)) {
      register_case(c, target);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
