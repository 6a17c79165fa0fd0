// SPDX-License-Identifier: Apache-2.0
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "bench/experts/experts_operands.h"
#include "bench/random_operand.h"
#include "bench/router/router_operands.h"
#include "kernels/experts/experts.h"
#include "kernels/permute/permute.h"

namespace memphis::bench {
namespace {

// The experts of a layer from tokens to tokens, as csrc/model/moe.cpp has them on a rank that no rows
// leave: what the products of `experts` alone do not show, the router, where rows go, their way there
// and back, and the sums. Loads are those that random tokens give a random router.
struct MoeCase {
  const char* name;
  std::int64_t T;
  std::int64_t D;
  std::int64_t F;
  std::int64_t E;
  std::int64_t K;
  bool fits_cpu;

  std::int64_t R() const { return T * K; }
};

constexpr MoeCase kCases[] = {
    {"small_model", 4096, 128, 344, 8, 2, true},
    // A rank of eight by tensor parallelism.
    {"grok_eighth", 8192, 6144, 4096, 8, 2, false},
};

struct MoeOperands {
  MoeOperands(const MoeCase& c, const Target& target)
      : y(random({c.T, c.D}, target)),
        dy(random({c.T, c.D}, target)),
        slot(numbers({c.T, c.K}, target)),
        source(numbers({c.R()}, target)),
        offsets(numbers({c.E + 1}, target)),
        chunk_counts(numbers({kernels::kPermuteChunks, c.E}, target)),
        router({.name = c.name,
                .num_sequences = 1,
                .sequence_length = c.T,
                .width = c.D,
                .num_experts = c.E,
                .num_choices = c.K,
                .accumulate = true},
               target),
        of_experts({.name = c.name,
                    .counts = std::vector<std::int64_t>(static_cast<std::size_t>(c.E), c.R() / c.E),
                    .D = c.D,
                    .F = c.F},
                   target) {}

  void forward(Stream stream) const {
    kernels::router_forward(router.forward(), stream);
    kernels::permute_index({.slot_TK = *slot,
                            .source_R = *source,
                            .offsets_E1 = *offsets,
                            .experts_TK = *router.experts,
                            .chunk_counts_PE = *chunk_counts},
                           stream);
    kernels::permute(
        {.x_RD = of_experts.x, .x_TD = *router.x, .source_R = *source, .slot_TK = *slot}, stream);
    kernels::experts_forward(as_routed(of_experts.forward()), stream);
    kernels::unpermute({.y_TD = *y, .y_RD = of_experts.y, .slot_TK = *slot}, stream);
    kernels::router_balance(router.balances(), stream);
  }

  // After forward(), and again: what is in gate_up by then takes as long.
  void backward(Stream stream) const {
    kernels::permute({.x_RD = of_experts.dy, .x_TD = *dy, .source_R = *source, .slot_TK = *slot},
                     stream);
    kernels::ExpertsBackward experts_backward = as_routed(of_experts.backward());
    experts_backward.dgates_TK = *router.dgates;
    kernels::experts_backward(experts_backward, stream);
    kernels::unpermute({.y_TD = *router.dx, .y_RD = of_experts.dx, .slot_TK = *slot}, stream);
    kernels::router_backward(router.backward(), stream);
  }

  using Operand = std::shared_ptr<FilledTensor>;
  Operand y, dy, slot, source, offsets, chunk_counts;
  RouterOperands router;
  ExpertsOperands of_experts;

 private:
  // The rows are those that the router sends.
  template <class Op>
  Op as_routed(Op op) const {
    op.offsets_E1 = *offsets;
    op.gates_TK = *router.gates;
    op.source_R = *source;
    return op;
  }

  using Shape = std::initializer_list<std::int64_t>;

  static Operand random(Shape shape, const Target& target) {
    return random_operand({shape, target.dtype}, target.device);
  }
  static Operand numbers(Shape shape, const Target& target) {
    return std::make_shared<FilledTensor>(TensorSpec(shape, DType::i32), target.device);
  }
};

// Products of the experts and of the router; at least, weights, tokens and what is kept of them.
OpCost cost_of(const MoeCase& c, const Target& target, double passes) {
  const auto rows = static_cast<double>(c.R());
  const auto tokens = static_cast<double>(c.T);
  const auto width = static_cast<double>(c.D);
  const auto inner = static_cast<double>(c.F);
  const auto experts = static_cast<double>(c.E);
  const double elements = 3 * experts * width * inner + 2 * tokens * width + 3 * rows * inner;
  return {.bytes = passes * elements * static_cast<double>(size_of(target.dtype)),
          .flops = passes * (6 * rows * width * inner + 2 * tokens * width * experts)};
}

void register_case(const MoeCase& c, const Target& target) {
  const std::string shape = std::string(c.name) + " T=" + std::to_string(c.T) +
                            " K=" + std::to_string(c.K) + " D=" + std::to_string(c.D) +
                            " F=" + std::to_string(c.F) + " E=" + std::to_string(c.E);
  register_op_benchmark({.op = "moe_forward",
                         .shape = shape,
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = cost_of(c, target, 1),
                         .setup = [c, target]() -> std::function<void(Stream)> {
                           auto o = std::make_shared<MoeOperands>(c, target);
                           return [o](Stream stream) { o->forward(stream); };
                         }});
  register_op_benchmark({.op = "moe_backward",
                         .shape = shape,
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = cost_of(c, target, 2),
                         .setup = [c, target]() -> std::function<void(Stream)> {
                           auto o = std::make_shared<MoeOperands>(c, target);
                           const OwnedStream stream(target.device);
                           o->forward(stream.view());
                           synchronize(stream.view());
                           return [o](Stream on) { o->backward(on); };
                         }});
}

const bool kRegistered = [] {
  for (const MoeCase& c : kCases) {
    for (const Target& target : benchmark_targets(c.fits_cpu)) {
      register_case(c, target);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
