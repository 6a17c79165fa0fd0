// SPDX-License-Identifier: Apache-2.0
#include "kernels/geglu/geglu.h"

#include <algorithm>
#include <cstdint>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/geglu/geglu_row.h"
#include "kernels/routing_check.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Elements of y that one chunk computes: about 10 us of work, well above the cost of handing it
// out.
constexpr std::int64_t kGrainElements = 16384;

std::int64_t grain_rows(std::int64_t row_length) {
  return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, row_length));
}

void check_optional_gates(const OpCheck& check,
                          const TensorView& gates,
                          const TensorView& source,
                          std::int64_t R,
                          DType sums) {
  check.condition(
      gates.present() == source.present(),
      "one of gates_TK and source_R is absent (a row's gate is gates[source[r]]); give both "
      "or neither");
  if (gates.present()) {
    check_gates(check, gates, source, R, sums);
  }
}

OpCheck check(const GegluForward& op, Stream stream) {
  OpCheck check("geglu_forward", stream);
  check.num_dims("y_RF", op.y_RF, 2);
  const DType dtype = op.y_RF.dtype;
  const std::int64_t R = op.y_RF.dim(0);
  const std::int64_t F = op.y_RF.dim(1);
  check.float_dtype("y_RF", dtype);
  check.tensor("y_RF", op.y_RF, {R, F}, dtype);
  check.tensor("gate_up_R2F", op.gate_up_R2F, {R, 2 * F}, dtype);
  check_optional_gates(check, op.gates_TK, op.source_R, R, accumulation_dtype(dtype));
  return check;
}

OpCheck check(const GegluBackward& op, Stream stream) {
  OpCheck check("geglu_backward", stream);
  check.num_dims("dy_RF", op.dy_RF, 2);
  const DType dtype = op.dy_RF.dtype;
  const std::int64_t R = op.dy_RF.dim(0);
  const std::int64_t F = op.dy_RF.dim(1);
  check.float_dtype("dy_RF", dtype);
  check.tensor("dy_RF", op.dy_RF, {R, F}, dtype);
  check.tensor("dgate_up_R2F", op.dgate_up_R2F, {R, 2 * F}, dtype);
  check.tensor("gate_up_R2F", op.gate_up_R2F, {R, 2 * F}, dtype);
  check_optional_gates(check, op.gates_TK, op.source_R, R, accumulation_dtype(dtype));
  check.condition(
      op.dgates_TK.present() == op.gates_TK.present(),
      "one of gates_TK and dgates_TK is absent (a gate has a gradient); give both or neither");
  if (op.dgates_TK.present()) {
    check.tensor("dgates_TK",
                 op.dgates_TK,
                 {op.gates_TK.dim(0), op.gates_TK.dim(1)},
                 accumulation_dtype(dtype));
  }
  return check;
}

template <class T>
void forward(const GegluForward& op) {
  using Acc = Accumulator<T>;
  const std::int64_t F = op.y_RF.dim(1);
  T* const y = op.y_RF.as<T>();
  const T* const gate_up = op.gate_up_R2F.as<T>();
  const bool gated = op.gates_TK.present();
  const Acc* const gates = gated ? op.gates_TK.as<Acc>() : nullptr;
  const std::int32_t* const source = gated ? op.source_R.as<std::int32_t>() : nullptr;
  parallel_ranges(op.y_RF.dim(0), grain_rows(F), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* const gate = gate_up + r * 2 * F;
      geglu_forward_row(y + r * F, gate, gate + F, gated ? gates[source[r]] : Acc{1}, F);
    }
  });
}

template <class T>
void backward(const GegluBackward& op) {
  using Acc = Accumulator<T>;
  const std::int64_t F = op.dy_RF.dim(1);
  T* const dgate_up = op.dgate_up_R2F.as<T>();
  const T* const dy = op.dy_RF.as<T>();
  const T* const gate_up = op.gate_up_R2F.as<T>();
  const bool gated = op.gates_TK.present();
  const Acc* const gates = gated ? op.gates_TK.as<Acc>() : nullptr;
  Acc* const dgates = gated ? op.dgates_TK.as<Acc>() : nullptr;
  const std::int32_t* const source = gated ? op.source_R.as<std::int32_t>() : nullptr;
  parallel_ranges(op.dy_RF.dim(0), grain_rows(F), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* const gate = gate_up + r * 2 * F;
      T* const dgate = dgate_up + r * 2 * F;
      const Acc scale = gated ? gates[source[r]] : Acc{1};
      const Acc sum = geglu_backward_row(dgate, dgate + F, dy + r * F, gate, gate + F, scale, F);
      if (gated) {
        dgates[source[r]] = sum;
      }
    }
  });
}

}  // namespace

void geglu_forward(const GegluForward& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::geglu_forward(op, stream);
  }
  visit_float(op.y_RF.dtype, [&]<class T>() { forward<T>(op); });
}

void geglu_backward(const GegluBackward& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::geglu_backward(op, stream);
  }
  visit_float(op.dy_RF.dtype, [&]<class T>() { backward<T>(op); });
}

}  // namespace memphis::kernels
