// SPDX-License-Identifier: Apache-2.0
#include "kernels/experts/experts.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/cpu/gemm.h"
#include "kernels/geglu/geglu.h"
#include "kernels/geglu/geglu_row.h"
#include "kernels/grouped_matmul/grouped_matmul.h"
#include "kernels/launch.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

using cpu::Gemm;
using cpu::Transpose;

// Rows that pass through all three ops together. At F = 344 in f32 they are 0.5 MiB, which with the
// weights' copies stays within a second-level cache of 2 MiB.
constexpr std::int64_t kBlockRows = 128;
// Rows of a task of the forward pass: few enough for threads to share the work evenly, many enough
// to pay for the copies of the weights, which each task makes.
constexpr std::int64_t kTaskRows = 512;

struct Sizes {
  std::int64_t R, D, E, F;
};

template <class Op>
Sizes check_sizes(const OpCheck& check, const Op& op, Stream stream) {
  check.num_dims("x_RD", op.x_RD, 2);
  check.num_dims("down_weight_EDF", op.down_weight_EDF, 3);
  const DType dtype = op.x_RD.dtype;
  const DType sums = accumulation_dtype(dtype);
  check.float_dtype("x_RD", dtype);
  const Sizes s{.R = op.x_RD.dim(0),
                .D = op.x_RD.dim(1),
                .E = op.down_weight_EDF.dim(0),
                .F = op.down_weight_EDF.dim(2)};
  check.tensor("x_RD", op.x_RD, {s.R, s.D}, dtype);
  check.tensor("gate_up_R2F", op.gate_up_R2F, {s.R, 2 * s.F}, dtype);
  check.tensor("hidden_RF", op.hidden_RF, {s.R, s.F}, dtype);
  check.tensor("gate_up_weight_EFD", op.gate_up_weight_EFD, {s.E, 2 * s.F, s.D}, dtype);
  check.tensor("down_weight_EDF", op.down_weight_EDF, {s.E, s.D, s.F}, dtype);
  check.tensor("offsets_E1", op.offsets_E1, {s.E + 1}, DType::i32);
  check.num_dims("gates_TK", op.gates_TK, 2);
  check.condition(op.gates_TK.num_elements() == s.R,
                  "gates_TK is " + describe(op.gates_TK) + " for " + std::to_string(s.R) +
                      " rows (each row has one gate); T * K must be R");
  check.tensor("gates_TK", op.gates_TK, {op.gates_TK.dim(0), op.gates_TK.dim(1)}, sums);
  check.tensor("source_R", op.source_R, {s.R}, DType::i32);
  if (stream.device == Device::cpu) {
    const auto* offsets = op.offsets_E1.template as<std::int32_t>();
    check.condition(
        offsets[0] == 0 && offsets[s.E] == s.R && std::is_sorted(offsets, offsets + s.E + 1),
        "offsets_E1 does not ascend from 0 to the " + std::to_string(s.R) +
            " rows; pass the offsets that permute_index wrote for these rows");
  }
  return s;
}

// Memory of this thread for a task, that only grows.
template <class T, int kUse>
T* task_memory(std::int64_t count) {
  thread_local std::vector<T> memory;
  memory.resize(std::max(memory.size(), static_cast<std::size_t>(count)));
  return memory.data();
}
enum Use : int { kFirstWeight, kSecondWeight, kHidden };

// Calls body(begin, end) for blocks of rows [begin, end).
template <class Body>
void for_each_block(std::int64_t first, std::int64_t last, const Body& body) {
  for (std::int64_t begin = first; begin < last; begin += kBlockRows) {
    body(begin, std::min(begin + kBlockRows, last));
  }
}

template <class T>
void forward_rows(const ExpertsForward& op,
                  const Sizes& s,
                  std::int64_t e,
                  std::int64_t first,
                  std::int64_t last) {
  using Sum = Accumulator<T>;
  const auto* gates = op.gates_TK.as<Sum>();
  const auto* source = op.source_R.as<std::int32_t>();
  Gemm<T, T> up{.transpose_b = Transpose::yes,
                .m = 0,
                .n = 2 * s.F,
                .k = s.D,
                .a = nullptr,
                .lda = s.D,
                .b = op.gate_up_weight_EFD.as<T>() + e * 2 * s.F * s.D,
                .ldb = s.D,
                .c = nullptr,
                .ldc = 2 * s.F};
  Gemm<T, T> down{.transpose_b = Transpose::yes,
                  .m = 0,
                  .n = s.D,
                  .k = s.F,
                  .a = nullptr,
                  .lda = s.F,
                  .b = op.down_weight_EDF.as<T>() + e * s.D * s.F,
                  .ldb = s.F,
                  .c = nullptr,
                  .ldc = s.D};
  Sum* packed_up = task_memory<Sum, kFirstWeight>(cpu::packed_count<T>(up.k, up.n));
  Sum* packed_down = task_memory<Sum, kSecondWeight>(cpu::packed_count<T>(down.k, down.n));
  cpu::pack(up, packed_up);
  cpu::pack(down, packed_down);
  for_each_block(first, last, [&](std::int64_t begin, std::int64_t end) {
    T* gate_up = op.gate_up_R2F.as<T>() + begin * 2 * s.F;
    T* hidden = op.hidden_RF.as<T>() + begin * s.F;
    up.m = end - begin;
    up.a = op.x_RD.as<T>() + begin * s.D;
    up.c = gate_up;
    cpu::gemm_packed(up, packed_up);
    for (std::int64_t r = 0; r < end - begin; ++r) {
      const T* gate = gate_up + r * 2 * s.F;
      geglu_forward_row(hidden + r * s.F, gate, gate + s.F, gates[source[begin + r]], s.F);
    }
    down.m = end - begin;
    down.a = hidden;
    down.c = op.y_RD.as<T>() + begin * s.D;
    cpu::gemm_packed(down, packed_down);
  });
}

// Tasks of nearly kTaskRows rows of one expert, by counts alone.
template <class T>
void forward_cpu(const ExpertsForward& op, const Sizes& s) {
  const auto* offsets = op.offsets_E1.as<std::int32_t>();
  const auto num_tasks = [&](std::int64_t e) {
    return ceil_div(offsets[e + 1] - offsets[e], kTaskRows);
  };
  std::int64_t total = 0;
  for (std::int64_t e = 0; e < s.E; ++e) {
    total += num_tasks(e);
  }
  parallel_chunks(total, [&](std::int64_t task) {
    std::int64_t e = 0;
    for (; task >= num_tasks(e); ++e) {
      task -= num_tasks(e);
    }
    const std::int64_t rows = offsets[e + 1] - offsets[e];
    const std::int64_t first = offsets[e] + rows * task / num_tasks(e);
    const std::int64_t last = offsets[e] + rows * (task + 1) / num_tasks(e);
    forward_rows<T>(op, s, e, first, last);
  });
}

// All of one expert: the gradients of its weights, which every block adds to, stay in the cache
// too.
template <class T>
void backward_expert(const ExpertsBackward& op, const Sizes& s, std::int64_t e) {
  using Sum = Accumulator<T>;
  const auto* offsets = op.offsets_E1.as<std::int32_t>();
  const auto* gates = op.gates_TK.as<Sum>();
  const auto* source = op.source_R.as<std::int32_t>();
  auto* dgates = op.dgates_TK.as<Sum>();
  T* dhidden = task_memory<T, kHidden>(kBlockRows * s.F);

  Gemm<T, T> to_hidden{.m = 0,
                       .n = s.F,
                       .k = s.D,
                       .a = nullptr,
                       .lda = s.D,
                       .b = op.down_weight_EDF.as<T>() + e * s.D * s.F,
                       .ldb = s.F,
                       .c = dhidden,
                       .ldc = s.F};
  Gemm<T, T> to_x{.m = 0,
                  .n = s.D,
                  .k = 2 * s.F,
                  .a = nullptr,
                  .lda = 2 * s.F,
                  .b = op.gate_up_weight_EFD.as<T>() + e * 2 * s.F * s.D,
                  .ldb = s.D,
                  .c = nullptr,
                  .ldc = s.D};
  Sum* packed_down = task_memory<Sum, kFirstWeight>(cpu::packed_count<T>(s.D, s.F));
  Sum* packed_up = task_memory<Sum, kSecondWeight>(cpu::packed_count<T>(2 * s.F, s.D));
  cpu::pack(to_hidden, packed_down);
  cpu::pack(to_x, packed_up);

  for_each_block(offsets[e], offsets[e + 1], [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t rows = end - begin;
    const T* dy = op.dy_RD.as<T>() + begin * s.D;
    T* gate_up = op.gate_up_R2F.as<T>() + begin * 2 * s.F;
    to_hidden.m = rows;
    to_hidden.a = dy;
    cpu::gemm_packed(to_hidden, packed_down);
    for (std::int64_t r = 0; r < rows; ++r) {
      T* gate = gate_up + r * 2 * s.F;
      const std::int32_t a = source[begin + r];
      dgates[a] =
          geglu_backward_row(gate, gate + s.F, dhidden + r * s.F, gate, gate + s.F, gates[a], s.F);
    }
    to_x.m = rows;
    to_x.a = gate_up;
    to_x.c = op.dx_RD.as<T>() + begin * s.D;
    cpu::gemm_packed(to_x, packed_up);
    cpu::gemm(Gemm<T, Sum>{.transpose_a = Transpose::yes,
                           .m = s.D,
                           .n = s.F,
                           .k = rows,
                           .a = dy,
                           .lda = s.D,
                           .b = op.hidden_RF.as<T>() + begin * s.F,
                           .ldb = s.F,
                           .c = op.ddown_weight_EDF.as<Sum>() + e * s.D * s.F,
                           .ldc = s.F,
                           .accumulate = true});
    cpu::gemm(Gemm<T, Sum>{.transpose_a = Transpose::yes,
                           .m = 2 * s.F,
                           .n = s.D,
                           .k = rows,
                           .a = gate_up,
                           .lda = 2 * s.F,
                           .b = op.x_RD.as<T>() + begin * s.D,
                           .ldb = s.D,
                           .c = op.dgate_up_weight_EFD.as<Sum>() + e * 2 * s.F * s.D,
                           .ldc = s.D,
                           .accumulate = true});
  });
}

// One task an expert, the largest first, so that threads end together.
template <class T>
void backward_cpu(const ExpertsBackward& op, const Sizes& s) {
  const auto* offsets = op.offsets_E1.as<std::int32_t>();
  thread_local std::vector<std::int64_t> order;
  order.resize(static_cast<std::size_t>(s.E));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    const std::int32_t rows_a = offsets[a + 1] - offsets[a];
    const std::int32_t rows_b = offsets[b + 1] - offsets[b];
    return rows_a != rows_b ? rows_a > rows_b : a < b;
  });
  const std::int64_t* experts = order.data();
  parallel_chunks(s.E, [&](std::int64_t task) { backward_expert<T>(op, s, experts[task]); });
}

}  // namespace

void experts_forward(const ExpertsForward& op, Stream stream) {
  const OpCheck check("experts_forward", stream);
  const Sizes s = check_sizes(check, op, stream);
  check.tensor("y_RD", op.y_RD, {s.R, s.D}, op.x_RD.dtype);
  if (stream.device == Device::cpu) {
    return visit_float(op.x_RD.dtype, [&]<class T>() { forward_cpu<T>(op, s); });
  }
  grouped_matmul_forward({.y_RN = op.gate_up_R2F,
                          .x_RK = op.x_RD,
                          .weight_ENK = op.gate_up_weight_EFD,
                          .offsets_E1 = op.offsets_E1},
                         stream);
  geglu_forward({.y_RF = op.hidden_RF,
                 .gate_up_R2F = op.gate_up_R2F,
                 .gates_TK = op.gates_TK,
                 .source_R = op.source_R},
                stream);
  grouped_matmul_forward({.y_RN = op.y_RD,
                          .x_RK = op.hidden_RF,
                          .weight_ENK = op.down_weight_EDF,
                          .offsets_E1 = op.offsets_E1},
                         stream);
}

void experts_backward(const ExpertsBackward& op, Stream stream) {
  const OpCheck check("experts_backward", stream);
  const Sizes s = check_sizes(check, op, stream);
  const DType dtype = op.x_RD.dtype;
  const DType sums = accumulation_dtype(dtype);
  check.tensor("dx_RD", op.dx_RD, {s.R, s.D}, dtype);
  check.tensor("dy_RD", op.dy_RD, {s.R, s.D}, dtype);
  check.tensor("dhidden_RF", op.dhidden_RF, {s.R, s.F}, dtype);
  check.tensor("dgate_up_weight_EFD", op.dgate_up_weight_EFD, {s.E, 2 * s.F, s.D}, sums);
  check.tensor("ddown_weight_EDF", op.ddown_weight_EDF, {s.E, s.D, s.F}, sums);
  check.tensor("dgates_TK", op.dgates_TK, {op.gates_TK.dim(0), op.gates_TK.dim(1)}, sums);
  if (stream.device == Device::cpu) {
    return visit_float(dtype, [&]<class T>() { backward_cpu<T>(op, s); });
  }
  grouped_matmul_backward({.dx_RK = op.dhidden_RF,
                           .dweight_ENK = op.ddown_weight_EDF,
                           .dy_RN = op.dy_RD,
                           .x_RK = op.hidden_RF,
                           .weight_ENK = op.down_weight_EDF,
                           .offsets_E1 = op.offsets_E1},
                          stream);
  geglu_backward({.dgate_up_R2F = op.gate_up_R2F,
                  .dgates_TK = op.dgates_TK,
                  .dy_RF = op.dhidden_RF,
                  .gate_up_R2F = op.gate_up_R2F,
                  .gates_TK = op.gates_TK,
                  .source_R = op.source_R},
                 stream);
  grouped_matmul_backward({.dx_RK = op.dx_RD,
                           .dweight_ENK = op.dgate_up_weight_EFD,
                           .dy_RN = op.gate_up_R2F,
                           .x_RK = op.x_RD,
                           .weight_ENK = op.gate_up_weight_EFD,
                           .offsets_E1 = op.offsets_E1},
                          stream);
}

}  // namespace memphis::kernels
