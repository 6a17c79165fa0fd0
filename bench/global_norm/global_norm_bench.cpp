// SPDX-License-Identifier: Apache-2.0
#include "bench/global_norm/global_norm_cases.h"
#include "bench/random_operand.h"
#include "kernels/global_norm/global_norm.h"

namespace memphis::bench {
namespace {

// Gradients are f32 in every model, so f32 alone is timed.
void register_case(const GlobalNormCase& c, Device device) {
  const TensorSpec x_n({c.num_elements}, DType::f32);
  register_op_benchmark(
      {.op = "global_norm",
       .shape = shape_of(c),
       .device = device,
       .dtype = DType::f32,
       .cost = {.bytes = static_cast<double>(x_n.bytes())},
       .setup = [=]() -> std::function<void(Stream)> {
         const auto x = random_operand(x_n, device);
         const auto norm = random_operand({{1}, DType::f32}, device);
         const auto partial = random_operand({{c.num_partials}, DType::f64}, device);
         return [=](Stream stream) {
           kernels::global_norm({.norm_1 = *norm, .x_n = *x, .partial_P = *partial}, stream);
         };
       }});
}

const bool kRegistered = [] {
  for (const GlobalNormCase& c : global_norm_cases()) {
    if (!c.timed) {
      continue;
    }
    register_case(c, Device::cuda);
    if (c.tested) {
      register_case(c, Device::cpu);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
