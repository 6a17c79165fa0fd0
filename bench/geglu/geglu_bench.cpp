// SPDX-License-Identifier: Apache-2.0
#include "bench/geglu/geglu_cases.h"
#include "bench/random_operand.h"
#include "kernels/geglu/geglu.h"

namespace memphis::bench {
namespace {

// The operands of both directions.
struct Operands {
  std::shared_ptr<FilledTensor> y;
  std::shared_ptr<FilledTensor> gate_up;
  std::shared_ptr<FilledTensor> dgate_up;
  std::shared_ptr<FilledTensor> gates;
  std::shared_ptr<FilledTensor> dgates;
  std::shared_ptr<FilledTensor> source;
};

Operands draw(const GegluCase& c, const Target& target) {
  const std::int64_t R = c.num_rows();
  const TensorSpec rows({R, c.width}, target.dtype);
  const TensorSpec double_rows({R, 2 * c.width}, target.dtype);
  const TensorSpec gates({c.num_tokens, c.num_choices}, DType::f32);
  std::vector<double> source;
  for (std::int64_t r = 0; r < R; ++r) {
    source.push_back(static_cast<double>(R - 1 - r));
  }
  return {
      .y = random_operand(rows, target.device),
      .gate_up = random_operand(double_rows, target.device),
      .dgate_up = random_operand(double_rows, target.device),
      .gates = random_operand(gates, target.device),
      .dgates = random_operand(gates, target.device),
      .source = std::make_shared<FilledTensor>(TensorSpec({R}, DType::i32), target.device, source)};
}

void register_case(const GegluCase& c, const Target& target) {
  const auto elements = static_cast<double>(c.num_rows() * c.width);
  const auto element_bytes = static_cast<double>(size_of(target.dtype));
  register_op_benchmark({.op = "geglu_forward",
                         .shape = shape_of(c),
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = {.bytes = 3 * elements * element_bytes},
                         .setup = [c, target]() -> std::function<void(Stream)> {
                           return [o = draw(c, target)](Stream stream) {
                             kernels::geglu_forward({.y_RF = *o.y,
                                                     .gate_up_R2F = *o.gate_up,
                                                     .gates_TK = *o.gates,
                                                     .source_R = *o.source},
                                                    stream);
                           };
                         }});
  register_op_benchmark({.op = "geglu_backward",
                         .shape = shape_of(c),
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = {.bytes = 5 * elements * element_bytes},
                         .setup = [c, target]() -> std::function<void(Stream)> {
                           return [o = draw(c, target)](Stream stream) {
                             kernels::geglu_backward({.dgate_up_R2F = *o.dgate_up,
                                                      .dgates_TK = *o.dgates,
                                                      .dy_RF = *o.y,
                                                      .gate_up_R2F = *o.gate_up,
                                                      .gates_TK = *o.gates,
                                                      .source_R = *o.source},
                                                     stream);
                           };
                         }});
}

const bool kRegistered = [] {
  for (const GegluCase& c : geglu_cases()) {
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
