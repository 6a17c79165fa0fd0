// SPDX-License-Identifier: Apache-2.0
#include "bench/experts/experts_operands.h"
#include "bench/random_operand.h"
#include "kernels/experts/experts.h"

namespace memphis::bench {
namespace {

// At least: weights, rows in and out, and what backward needs of forward.
OpCost cost_of(const ExpertsCase& c, const Target& target, double products) {
  const auto rows = static_cast<double>(c.R());
  const auto width = static_cast<double>(c.D * c.F);
  const double elements =
      static_cast<double>(c.E()) * 3 * width + rows * static_cast<double>(2 * c.D + 3 * c.F);
  return {.bytes = elements * static_cast<double>(size_of(target.dtype)),
          .flops = products * 6 * rows * width};
}

void register_case(const ExpertsCase& c, const Target& target) {
  const std::string shape = c.name + " R=" + std::to_string(c.R()) + " D=" + std::to_string(c.D) +
                            " F=" + std::to_string(c.F) + " E=" + std::to_string(c.E());
  register_op_benchmark({.op = "experts_forward",
                         .shape = shape,
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = cost_of(c, target, 1),
                         .setup = [c, target]() -> std::function<void(Stream)> {
                           auto o = std::make_shared<ExpertsOperands>(c, target);
                           return [o](Stream stream) {
                             kernels::experts_forward(o->forward(), stream);
                           };
                         }});
  register_op_benchmark({.op = "experts_backward",
                         .shape = shape,
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = cost_of(c, target, 2),
                         .setup = [c, target]() -> std::function<void(Stream)> {
                           auto o = std::make_shared<ExpertsOperands>(c, target);
                           const OwnedStream stream(target.device);
                           kernels::experts_forward(o->forward(), stream.view());
                           synchronize(stream.view());
                           return [o](Stream on) { kernels::experts_backward(o->backward(), on); };
                         }});
}

const bool kRegistered = [] {
  constexpr std::int64_t kMaxOnCpu = std::int64_t{1} << 30U;  // multiply-adds: some 10 ms a core
  for (const ExpertsCase& c : experts_cases()) {
    if (!c.tested) {
      for (const Target& target : benchmark_targets(c.R() * c.D * c.F <= kMaxOnCpu)) {
        register_case(c, target);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
