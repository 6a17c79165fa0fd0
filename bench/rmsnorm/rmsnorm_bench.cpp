// SPDX-License-Identifier: Apache-2.0
#include "bench/random_operand.h"
#include "bench/rmsnorm/rmsnorm_cases.h"
#include "kernels/rmsnorm/rmsnorm.h"

namespace memphis::bench {
namespace {

void register_forward(const RmsNormCase& c, const Target& target) {
  const TensorSpec rows({c.num_tokens, c.width}, target.dtype);
  register_op_benchmark(
      {.op = "rmsnorm_forward",
       .shape = shape_of(c),
       .device = target.device,
       .dtype = target.dtype,
       .cost = {.bytes = static_cast<double>(rows.bytes()) *
                         (2 + (c.residual ? 1 : 0) + (c.next ? 1 : 0))},
       .setup = [c, target, rows]() -> std::function<void(Stream)> {
         const auto x = random_operand(rows, target.device);
         const auto y = random_operand(rows, target.device);
         const auto residual = random_operand(rows, target.device);
         const auto rrms = random_operand({{c.num_tokens}, DType::f32}, target.device);
         const auto weight = random_operand({{c.width}, DType::f32}, target.device);
         const auto next_y = random_operand(rows, target.device);
         return [=](Stream stream) {
           const kernels::NextNormForward next = {
               .y_TD = *next_y, .rrms_T = *rrms, .weight_D = *weight};
           kernels::rmsnorm_forward({.y_TD = *y,
                                     .rrms_T = *rrms,
                                     .x_TD = *x,
                                     .weight_D = *weight,
                                     .residual_TD = c.residual ? residual->view() : TensorView{},
                                     .next = c.next ? next : kernels::NextNormForward{}},
                                    stream);
         };
       }});
}

void register_backward(const RmsNormCase& c, const Target& target) {
  const TensorSpec rows({c.num_tokens, c.width}, target.dtype);
  register_op_benchmark(
      {.op = "rmsnorm_backward",
       .shape = shape_of(c),
       .device = target.device,
       .dtype = target.dtype,
       .cost = {.bytes = static_cast<double>(rows.bytes()) *
                         (3 + (c.accumulate ? 1 : 0) + (c.next ? 3 : 0))},
       .setup = [c, target, rows]() -> std::function<void(Stream)> {
         const auto dx = random_operand(rows, target.device);
         const auto dy = random_operand(rows, target.device);
         const auto x = random_operand(rows, target.device);
         const auto rrms = random_operand({{c.num_tokens}, DType::f32}, target.device);
         const auto weight = random_operand({{c.width}, DType::f32}, target.device);
         const auto dweight = random_operand({{c.width}, DType::f32}, target.device);
         const auto partial =
             random_operand({{c.num_partials, c.width}, DType::f32}, target.device);
         const auto next_partial =
             random_operand({{c.num_partials, c.width}, DType::f32}, target.device);
         const auto next_dy = random_operand(rows, target.device);
         const auto y = random_operand(rows, target.device);
         const auto next_dweight = random_operand({{c.width}, DType::f32}, target.device);
         return [=](Stream stream) {
           const kernels::NextNormBackward next = {.dweight_D = *next_dweight,
                                                   .dy_TD = *next_dy,
                                                   .x_TD = *y,
                                                   .weight_D = *weight,
                                                   .rrms_T = *rrms,
                                                   .partial_PD = *next_partial};
           kernels::rmsnorm_backward({.dx_TD = *dx,
                                      .dweight_D = *dweight,
                                      .dy_TD = *dy,
                                      .x_TD = *x,
                                      .weight_D = *weight,
                                      .rrms_T = *rrms,
                                      .partial_PD = *partial,
                                      .accumulate = c.accumulate,
                                      .next = c.next ? next : kernels::NextNormBackward{}},
                                     stream);
         };
       }});
}

const bool kRegistered = [] {
  for (const RmsNormCase& c : rmsnorm_cases()) {
    if (!c.timed) {
      continue;
    }
    for (const Target& target : benchmark_targets(c.tested)) {
      register_forward(c, target);
      register_backward(c, target);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
