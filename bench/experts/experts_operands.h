// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bench/experts/experts_cases.h"
#include "bench/filled_tensor.h"
#include "kernels/experts/experts.h"

namespace memphis::bench {

// The operands of both directions, filled at random; outputs are poisoned, dweights hold values.
struct ExpertsOperands {
  ExpertsOperands(const ExpertsCase& c, const Target& target)
      : y(rows(c, c.D, target), target.device),
        gate_up(rows(c, 2 * c.F, target), target.device),
        hidden(rows(c, c.F, target), target.device),
        dhidden(rows(c, c.F, target), target.device),
        x(filled(rows(c, c.D, target), target, "x", 1.0)),
        dy(filled(rows(c, c.D, target), target, "dy", 1.0)),
        dx(rows(c, c.D, target), target.device),
        up_weight(filled({{c.E(), 2 * c.F, c.D}, target.dtype}, target, "up", 0.3)),
        down_weight(filled({{c.E(), c.D, c.F}, target.dtype}, target, "down", 0.3)),
        dup_weight(filled({{c.E(), 2 * c.F, c.D}, sums(target)}, target, "dup", 1.0)),
        ddown_weight(filled({{c.E(), c.D, c.F}, sums(target)}, target, "ddown", 1.0)),
        gates(filled({{c.R(), 1}, sums(target)}, target, "gates", 1.0)),
        dgates({{c.R(), 1}, sums(target)}, target.device),
        source({{c.R()}, DType::i32}, target.device, reversed(c.R())),
        offsets({{c.E() + 1}, DType::i32}, target.device, offsets_of(c)) {}

  kernels::ExpertsForward forward() const {
    return {.y_RD = y,
            .gate_up_R2F = gate_up,
            .hidden_RF = hidden,
            .x_RD = x,
            .gate_up_weight_EFD = up_weight,
            .down_weight_EDF = down_weight,
            .offsets_E1 = offsets,
            .gates_TK = gates,
            .source_R = source};
  }
  kernels::ExpertsBackward backward() const {
    return {.dx_RD = dx,
            .dgate_up_weight_EFD = dup_weight,
            .ddown_weight_EDF = ddown_weight,
            .dgates_TK = dgates,
            .gate_up_R2F = gate_up,
            .dhidden_RF = dhidden,
            .dy_RD = dy,
            .x_RD = x,
            .hidden_RF = hidden,
            .gate_up_weight_EFD = up_weight,
            .down_weight_EDF = down_weight,
            .offsets_E1 = offsets,
            .gates_TK = gates,
            .source_R = source};
  }
  // In two parts.
  kernels::ExpertsBackward backward_inputs() const {
    kernels::ExpertsBackward op = backward();
    op.dgate_up_weight_EFD = {};
    op.ddown_weight_EDF = {};
    return op;
  }
  kernels::ExpertsBackwardWeights backward_weights() const {
    return {.dgate_up_weight_EFD = dup_weight,
            .ddown_weight_EDF = ddown_weight,
            .dgate_up_R2F = gate_up,
            .dy_RD = dy,
            .x_RD = x,
            .hidden_RF = hidden,
            .offsets_E1 = offsets};
  }

  FilledTensor y, gate_up, hidden, dhidden, x, dy, dx;
  FilledTensor up_weight, down_weight, dup_weight, ddown_weight, gates, dgates, source, offsets;

 private:
  static DType sums(const Target& target) { return accumulation_dtype(target.dtype); }
  static TensorSpec rows(const ExpertsCase& c, std::int64_t width, const Target& target) {
    return {{c.R(), width}, target.dtype};
  }
  static FilledTensor filled(const TensorSpec& spec,
                             const Target& target,
                             const char* name,
                             double stddev) {
    // To draw all of a large tensor takes longer than to time an op on it.
    constexpr std::int64_t kDrawn = 1 << 20;
    return FilledTensor::repeated(
        spec, target.device, random_normal(std::min(spec.num_elements(), kDrawn), name, stddev));
  }
  static std::vector<double> reversed(std::int64_t count) {
    std::vector<double> values;
    for (std::int64_t r = 0; r < count; ++r) {
      values.push_back(static_cast<double>(count - 1 - r));
    }
    return values;
  }
  static std::vector<double> offsets_of(const ExpertsCase& c) {
    std::vector<double> values{0};
    for (const std::int64_t count : c.counts) {
      values.push_back(values.back() + static_cast<double>(count));
    }
    return values;
  }
};

}  // namespace memphis::bench
