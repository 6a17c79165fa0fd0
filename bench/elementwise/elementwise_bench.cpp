// SPDX-License-Identifier: Apache-2.0
#include "bench/elementwise/elementwise_cases.h"
#include "bench/random_operand.h"
#include "kernels/elementwise/elementwise.h"

namespace memphis::bench {
namespace {

// A call on three operands of the case's shape: the output first.
using Call = std::function<void(TensorView y, TensorView a, TensorView b, Stream stream)>;

void register_call(const std::string& op,
                   const ElementwiseCase& c,
                   const Target& target,
                   int operands_moved,
                   const Call& call) {
  const TensorSpec spec({c.num_rows, c.width}, target.dtype);
  register_op_benchmark({.op = op,
                         .shape = shape_of(c),
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = {.bytes = static_cast<double>(spec.bytes()) * operands_moved},
                         .setup = [=]() -> std::function<void(Stream)> {
                           const auto y = random_operand(spec, target.device);
                           const auto a = random_operand(spec, target.device);
                           const auto b = random_operand(spec, target.device);
                           return [=](Stream stream) { call(*y, *a, *b, stream); };
                         }});
}

void register_case(const ElementwiseCase& c, const Target& target) {
  register_call("add", c, target, 3, [=](TensorView y, TensorView a, TensorView b, Stream stream) {
    kernels::add({.y = y, .a = a, .b = b, .scale = c.scale}, stream);
  });
  register_call(
      "scale", c, target, 2, [=](TensorView y, TensorView a, TensorView /*b*/, Stream stream) {
        kernels::scale({.y = y, .x = a, .scale = c.scale}, stream);
      });
  register_call("soft_cap_forward",
                c,
                target,
                2,
                [=](TensorView y, TensorView a, TensorView /*b*/, Stream stream) {
                  kernels::soft_cap_forward({.y = y, .x = a, .scale = c.scale, .cap = c.cap},
                                            stream);
                });
  register_call("soft_cap_backward",
                c,
                target,
                3,
                [=](TensorView y, TensorView a, TensorView b, Stream stream) {
                  kernels::soft_cap_backward(
                      {.dx = y, .dy = a, .y = b, .scale = c.scale, .cap = c.cap}, stream);
                });
}

// The conversion of a training step: f32 gradients and master weights to and from bf16.
void register_convert(const ElementwiseCase& c, const Target& target) {
  const TensorSpec in({c.num_rows, c.width}, target.dtype);
  const TensorSpec out({c.num_rows, c.width},
                       target.dtype == DType::f32 ? DType::bf16 : DType::f32);
  register_op_benchmark({.op = "convert",
                         .shape = shape_of(c),
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = {.bytes = static_cast<double>(in.bytes() + out.bytes())},
                         .setup = [=]() -> std::function<void(Stream)> {
                           const auto x = random_operand(in, target.device);
                           const auto y = random_operand(out, target.device);
                           return
                               [=](Stream stream) { kernels::convert({.y = *y, .x = *x}, stream); };
                         }});
}

const bool kRegistered = [] {
  for (const ElementwiseCase& c : elementwise_cases()) {
    if (!c.timed) {
      continue;
    }
    for (const Target& target : benchmark_targets(c.tested)) {
      register_case(c, target);
      register_convert(c, target);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
