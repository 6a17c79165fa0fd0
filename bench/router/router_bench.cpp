// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <memory>

#include "bench/router/router_operands.h"
#include "kernels/router/router.h"

namespace memphis::bench {
namespace {

// What the backward pass reads is there.
std::shared_ptr<const RouterOperands> draw(const RouterCase& c, const Target& target) {
  auto operands = std::make_shared<const RouterOperands>(c, target);
  const OwnedStream stream(target.device);
  kernels::router_forward(operands->forward(), stream.view());
  synchronize(stream.view());
  return operands;
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
                           return [o = draw(c, target)](Stream stream) {
                             kernels::router_forward(o->forward(), stream);
                           };
                         }});
  register_op_benchmark(
      {.op = "router_balance",
       .shape = shape_of(c),
       .device = target.device,
       .dtype = DType::f32,
       .cost = {.bytes = 8.0 * static_cast<double>(c.num_sequences * c.num_experts)},
       .setup = [c, target]() -> std::function<void(Stream)> {
         return [o = draw(c, target)](Stream stream) {
           kernels::router_balance(o->balances(), stream);
         };
       }});
  register_op_benchmark({.op = "router_backward",
                         .shape = shape_of(c),
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = {.bytes = x_bytes * (c.accumulate ? 3 : 2), .flops = 2 * flops},
                         .setup = [c, target]() -> std::function<void(Stream)> {
                           return [o = draw(c, target)](Stream stream) {
                             kernels::router_backward(o->backward(), stream);
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
