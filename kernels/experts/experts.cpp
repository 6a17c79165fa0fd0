// SPDX-License-Identifier: Apache-2.0
#include "kernels/experts/experts.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/cpu/gemm.h"
#include "kernels/geglu/geglu_row.h"
#include "kernels/launch.h"
#include "kernels/routing_check.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

using cpu::Gemm;
using cpu::Scratch;
using cpu::scratch_bytes;
using cpu::ThreadScratch;
using cpu::Transpose;

// Rows that pass through all three ops together, so few that with the weights' copies they stay in
// a second-level cache of 2 MiB: at D = 128, F = 344 in f32 64 rows are 0.3 MiB and the copies 0.5.
// Forward of configs/bench_cpu.yaml's experts takes 9 % longer with 128 rows. Backward adds every
// block to the gradients of the weights, which makes up for it: 64 and 128 rows take the same.
constexpr std::int64_t kForwardRows = 64;
constexpr std::int64_t kBackwardRows = 128;
// Rows of a task of the forward pass: few enough for threads to share the work evenly, many enough
// to pay for the copies of the weights, which each task makes.
constexpr std::int64_t kTaskRows = 512;

struct Sizes {
  std::int64_t R, D, E, F;
};

// Of the rows and of one [E, D, F], the weight or its gradient.
Sizes check_rows(const OpCheck& check,
                 const TensorView& x_RD,
                 const char* weight_name,
                 const TensorView& weight_EDF) {
  check.num_dims("x_RD", x_RD, 2);
  check.num_dims(weight_name, weight_EDF, 3);
  check.float_dtype("x_RD", x_RD.dtype);
  const Sizes s{.R = x_RD.dim(0), .D = x_RD.dim(1), .E = weight_EDF.dim(0), .F = weight_EDF.dim(2)};
  check.tensor("x_RD", x_RD, {s.R, s.D}, x_RD.dtype);
  return s;
}

template <class Op>
Sizes check_sizes(const OpCheck& check, const Op& op, Stream stream) {
  const Sizes s = check_rows(check, op.x_RD, "down_weight_EDF", op.down_weight_EDF);
  const DType dtype = op.x_RD.dtype;
  const DType sums = accumulation_dtype(dtype);
  check.tensor("gate_up_R2F", op.gate_up_R2F, {s.R, 2 * s.F}, dtype);
  check.tensor("hidden_RF", op.hidden_RF, {s.R, s.F}, dtype);
  check.tensor("gate_up_weight_EFD", op.gate_up_weight_EFD, {s.E, 2 * s.F, s.D}, dtype);
  check.tensor("down_weight_EDF", op.down_weight_EDF, {s.E, s.D, s.F}, dtype);
  check_offsets(check, stream, op.offsets_E1, s.E, s.R);
  check_gates(check, op.gates_TK, op.source_R, s.R, sums);
  return s;
}

template <class Op>
void check_weight_gradients(const OpCheck& check, const Op& op, const Sizes& s, DType sums) {
  check.tensor("dgate_up_weight_EFD", op.dgate_up_weight_EFD, {s.E, 2 * s.F, s.D}, sums);
  check.tensor("ddown_weight_EDF", op.ddown_weight_EDF, {s.E, s.D, s.F}, sums);
  check.product(3 * s.F, s.D, s.R);
}

// Calls body(begin, end) for blocks of `block` rows of [first, last), and for one of no rows where
// there are none: to an expert without rows zeros may be written.
template <class Body>
void for_each_block(std::int64_t first, std::int64_t last, std::int64_t block, const Body& body) {
  std::int64_t begin = first;
  do {
    body(begin, std::min(begin + block, last));
    begin += block;
  } while (begin < last);
}

// The products of a block of expert e's rows; `m` and the operands that lie in rows are set block
// by block.
template <class T>
Gemm<T, T> up_product(const ExpertsForward& op, const Sizes& s, std::int64_t e) {
  return {.transpose_b = Transpose::yes,
          .m = kForwardRows,
          .n = 2 * s.F,
          .k = s.D,
          .a = nullptr,
          .lda = s.D,
          .b = op.gate_up_weight_EFD.as<T>() + e * 2 * s.F * s.D,
          .ldb = s.D,
          .c = nullptr,
          .ldc = 2 * s.F};
}

template <class T>
Gemm<T, T> down_product(const ExpertsForward& op, const Sizes& s, std::int64_t e) {
  return {.transpose_b = Transpose::yes,
          .m = kForwardRows,
          .n = s.D,
          .k = s.F,
          .a = nullptr,
          .lda = s.F,
          .b = op.down_weight_EDF.as<T>() + e * s.D * s.F,
          .ldb = s.F,
          .c = nullptr,
          .ldc = s.D};
}

// Copies of an expert's two weights, which the blocks of a task share.
template <class T>
std::int64_t packed_weights_bytes(const Sizes& s) {
  using Sum = Accumulator<T>;
  return std::max(scratch_bytes<Sum>(cpu::packed_count<T>(s.D, 2 * s.F)) +
                      scratch_bytes<Sum>(cpu::packed_count<T>(s.F, s.D)),
                  scratch_bytes<Sum>(cpu::packed_count<T>(s.D, s.F)) +
                      scratch_bytes<Sum>(cpu::packed_count<T>(2 * s.F, s.D)));
}

template <class T>
void forward_rows(const ExpertsForward& op,
                  const Sizes& s,
                  Scratch scratch,
                  std::int64_t e,
                  std::int64_t first,
                  std::int64_t last) {
  using Sum = Accumulator<T>;
  const auto* gates = op.gates_TK.as<Sum>();
  const auto* source = op.source_R.as<std::int32_t>();
  Gemm<T, T> up = up_product<T>(op, s, e);
  Gemm<T, T> down = down_product<T>(op, s, e);
  Sum* packed_up = scratch.take<Sum>(cpu::packed_count<T>(up.k, up.n));
  Sum* packed_down = scratch.take<Sum>(cpu::packed_count<T>(down.k, down.n));
  cpu::pack(up, packed_up);
  if (op.y_RD.present()) {
    cpu::pack(down, packed_down);
  }
  for_each_block(first, last, kForwardRows, [&](std::int64_t begin, std::int64_t end) {
    T* gate_up = op.gate_up_R2F.as<T>() + begin * 2 * s.F;
    T* hidden = op.hidden_RF.as<T>() + begin * s.F;
    up.m = end - begin;
    up.a = op.x_RD.as<T>() + begin * s.D;
    up.c = gate_up;
    cpu::gemm_packed(up, packed_up, scratch);
    for (std::int64_t r = 0; r < end - begin; ++r) {
      const T* gate = gate_up + r * 2 * s.F;
      geglu_forward_row(hidden + r * s.F, gate, gate + s.F, gates[source[begin + r]], s.F);
    }
    if (op.y_RD.present()) {
      down.m = end - begin;
      down.a = hidden;
      down.c = op.y_RD.as<T>() + begin * s.D;
      cpu::gemm_packed(down, packed_down, scratch);
    }
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
  const ThreadScratch scratch(packed_weights_bytes<T>(s) +
                              std::max(cpu::gemm_scratch_bytes(up_product<T>(op, s, 0)),
                                       cpu::gemm_scratch_bytes(down_product<T>(op, s, 0))));
  parallel_chunks(total, [&](std::int64_t task) {
    std::int64_t e = 0;
    for (; task >= num_tasks(e); ++e) {
      task -= num_tasks(e);
    }
    const std::int64_t rows = offsets[e + 1] - offsets[e];
    const std::int64_t first = offsets[e] + rows * task / num_tasks(e);
    const std::int64_t last = offsets[e] + rows * (task + 1) / num_tasks(e);
    forward_rows<T>(op, s, scratch.mine(), e, first, last);
  });
}

template <class T>
Gemm<T, T> dhidden_product(const ExpertsBackward& op, const Sizes& s, std::int64_t e) {
  return {.m = kBackwardRows,
          .n = s.F,
          .k = s.D,
          .a = nullptr,
          .lda = s.D,
          .b = op.down_weight_EDF.as<T>() + e * s.D * s.F,
          .ldb = s.F,
          .c = nullptr,
          .ldc = s.F};
}

template <class T>
Gemm<T, T> dx_product(const ExpertsBackward& op, const Sizes& s, std::int64_t e) {
  return {.m = kBackwardRows,
          .n = s.D,
          .k = 2 * s.F,
          .a = nullptr,
          .lda = 2 * s.F,
          .b = op.gate_up_weight_EFD.as<T>() + e * 2 * s.F * s.D,
          .ldb = s.D,
          .c = nullptr,
          .ldc = s.D};
}

// The products that form a block of rows' part of the gradients of expert e's weights; `op` is of
// either backward pass.
template <class T, class Op>
Gemm<T, Accumulator<T>> ddown_product(const Op& op, const Sizes& s, std::int64_t e) {
  return {.transpose_a = Transpose::yes,
          .m = s.D,
          .n = s.F,
          .k = kBackwardRows,
          .a = nullptr,
          .lda = s.D,
          .b = nullptr,
          .ldb = s.F,
          .c = op.ddown_weight_EDF.template as<Accumulator<T>>() + e * s.D * s.F,
          .ldc = s.F};
}

template <class T, class Op>
Gemm<T, Accumulator<T>> dup_product(const Op& op, const Sizes& s, std::int64_t e) {
  return {.transpose_a = Transpose::yes,
          .m = 2 * s.F,
          .n = s.D,
          .k = kBackwardRows,
          .a = nullptr,
          .lda = 2 * s.F,
          .b = nullptr,
          .ldb = s.D,
          .c = op.dgate_up_weight_EFD.template as<Accumulator<T>>() + e * 2 * s.F * s.D,
          .ldc = s.D};
}

// Rows [begin, end) of dgate_up, which lies where gate_up was. The first block of an expert may
// write, the others add to it.
template <class T, class Op>
void add_to_weights(const Op& op,
                    const Sizes& s,
                    const TensorView& dgate_up_R2F,
                    const Scratch& scratch,
                    std::int64_t e,
                    std::int64_t begin,
                    std::int64_t end) {
  const bool add = op.weight_gradient == WeightGradient::add ||
                   begin != op.offsets_E1.template as<std::int32_t>()[e];
  auto to_down = ddown_product<T>(op, s, e);
  to_down.accumulate = add;
  to_down.k = end - begin;
  to_down.a = op.dy_RD.template as<T>() + begin * s.D;
  to_down.b = op.hidden_RF.template as<T>() + begin * s.F;
  cpu::gemm(to_down, scratch);
  auto to_up = dup_product<T>(op, s, e);
  to_up.accumulate = add;
  to_up.k = end - begin;
  to_up.a = dgate_up_R2F.as<T>() + begin * 2 * s.F;
  to_up.b = op.x_RD.template as<T>() + begin * s.D;
  cpu::gemm(to_up, scratch);
}

// All of one expert: the gradients of its weights, which every block adds to, stay in the cache
// too. What a block reads of the forward pass comes from memory, under the product before it: at R
// = 8192, D = 128, F = 344 with nothing in the cache 12.5 ms on two Zen 5 cores, and 13.4 without.
template <class T>
void backward_expert(const ExpertsBackward& op, const Sizes& s, Scratch scratch, std::int64_t e) {
  using Sum = Accumulator<T>;
  const auto* offsets = op.offsets_E1.as<std::int32_t>();
  const auto* gates = op.gates_TK.as<Sum>();
  const auto* source = op.source_R.as<std::int32_t>();
  auto* dgates = op.dgates_TK.as<Sum>();

  Gemm<T, T> to_hidden = dhidden_product<T>(op, s, e);
  Gemm<T, T> to_x = dx_product<T>(op, s, e);
  Sum* packed_down = scratch.take<Sum>(cpu::packed_count<T>(s.D, s.F));
  Sum* packed_up = scratch.take<Sum>(cpu::packed_count<T>(2 * s.F, s.D));
  cpu::pack(to_hidden, packed_down);
  cpu::pack(to_x, packed_up);
  T* dhidden = scratch.take<T>(kBackwardRows * s.F);
  to_hidden.c = dhidden;

  for_each_block(
      offsets[e], offsets[e + 1], kBackwardRows, [&](std::int64_t begin, std::int64_t end) {
        const std::int64_t rows = end - begin;
        const T* dy = op.dy_RD.as<T>() + begin * s.D;
        T* gate_up = op.gate_up_R2F.as<T>() + begin * 2 * s.F;
        to_hidden.m = rows;
        to_hidden.a = dy;
        to_hidden.ahead = {};
        to_hidden.ahead.add(gate_up, rows * 2 * s.F);
        cpu::gemm_packed(to_hidden, packed_down, scratch);
        for (std::int64_t r = 0; r < rows; ++r) {
          T* gate = gate_up + r * 2 * s.F;
          const std::int32_t a = source[begin + r];
          dgates[a] = geglu_backward_row(
              gate, gate + s.F, dhidden + r * s.F, gate, gate + s.F, gates[a], s.F);
        }
        to_x.m = rows;
        to_x.a = gate_up;
        to_x.c = op.dx_RD.as<T>() + begin * s.D;
        to_x.ahead = {};
        if (op.ddown_weight_EDF.present()) {
          to_x.ahead.add(op.hidden_RF.as<T>() + begin * s.F, rows * s.F);
          to_x.ahead.add(op.x_RD.as<T>() + begin * s.D, rows * s.D);
        }
        cpu::gemm_packed(to_x, packed_up, scratch);
        if (op.ddown_weight_EDF.present()) {
          add_to_weights<T>(op, s, op.gate_up_R2F, scratch, e, begin, end);
        }
      });
}

// One task an expert, the largest first, so that threads end together.
template <class Body>
void for_each_expert(const std::int32_t* offsets, std::int64_t num_experts, const Body& body) {
  thread_local std::vector<std::int64_t> order;
  order.resize(static_cast<std::size_t>(num_experts));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    const std::int32_t rows_a = offsets[a + 1] - offsets[a];
    const std::int32_t rows_b = offsets[b + 1] - offsets[b];
    return rows_a != rows_b ? rows_a > rows_b : a < b;
  });
  const std::int64_t* experts = order.data();
  parallel_chunks(num_experts, [&](std::int64_t task) { body(experts[task]); });
}

template <class T, class Op>
std::int64_t weights_scratch_bytes(const Op& op, const Sizes& s) {
  return op.ddown_weight_EDF.present()
             ? std::max(cpu::gemm_scratch_bytes(ddown_product<T>(op, s, 0)),
                        cpu::gemm_scratch_bytes(dup_product<T>(op, s, 0)))
             : 0;
}

template <class T>
void backward_cpu(const ExpertsBackward& op, const Sizes& s) {
  const ThreadScratch scratch(packed_weights_bytes<T>(s) + scratch_bytes<T>(kBackwardRows * s.F) +
                              std::max({cpu::gemm_scratch_bytes(dhidden_product<T>(op, s, 0)),
                                        cpu::gemm_scratch_bytes(dx_product<T>(op, s, 0)),
                                        weights_scratch_bytes<T>(op, s)}));
  for_each_expert(op.offsets_E1.as<std::int32_t>(), s.E, [&](std::int64_t e) {
    backward_expert<T>(op, s, scratch.mine(), e);
  });
}

template <class T>
void backward_weights_cpu(const ExpertsBackwardWeights& op, const Sizes& s) {
  const auto* offsets = op.offsets_E1.as<std::int32_t>();
  const ThreadScratch scratch(weights_scratch_bytes<T>(op, s));
  for_each_expert(offsets, s.E, [&](std::int64_t e) {
    for_each_block(
        offsets[e], offsets[e + 1], kBackwardRows, [&](std::int64_t begin, std::int64_t end) {
          add_to_weights<T>(op, s, op.dgate_up_R2F, scratch.mine(), e, begin, end);
        });
  });
}

}  // namespace

void experts_forward(const ExpertsForward& op, Stream stream) {
  const OpCheck check("experts_forward", stream);
  const Sizes s = check_sizes(check, op, stream);
  check.product(s.R, 2 * s.F, s.D);
  if (op.y_RD.present()) {
    check.tensor("y_RD", op.y_RD, {s.R, s.D}, op.x_RD.dtype);
    check.product(s.R, s.D, s.F);
  }
  if (stream.device == Device::cpu) {
    return visit_float(op.x_RD.dtype, [&]<class T>() { forward_cpu<T>(op, s); });
  }
  cuda::experts_forward(op, stream);
}

void experts_backward(const ExpertsBackward& op, Stream stream) {
  const OpCheck check("experts_backward", stream);
  const Sizes s = check_sizes(check, op, stream);
  const DType dtype = op.x_RD.dtype;
  const DType sums = accumulation_dtype(dtype);
  check.tensor("dx_RD", op.dx_RD, {s.R, s.D}, dtype);
  check.tensor("dy_RD", op.dy_RD, {s.R, s.D}, dtype);
  check.tensor("dhidden_RF", op.dhidden_RF, {s.R, s.F}, dtype);
  check.product(s.R, s.F, s.D);
  check.product(s.R, s.D, 2 * s.F);
  if (op.dgate_up_weight_EFD.present() || op.ddown_weight_EDF.present()) {
    check_weight_gradients(check, op, s, sums);
  }
  check.tensor("dgates_TK", op.dgates_TK, {op.gates_TK.dim(0), op.gates_TK.dim(1)}, sums);
  if (stream.device == Device::cpu) {
    return visit_float(dtype, [&]<class T>() { backward_cpu<T>(op, s); });
  }
  cuda::experts_backward(op, stream);
}

void experts_backward_weights(const ExpertsBackwardWeights& op, Stream stream) {
  const OpCheck check("experts_backward_weights", stream);
  const Sizes s = check_rows(check, op.x_RD, "ddown_weight_EDF", op.ddown_weight_EDF);
  const DType dtype = op.x_RD.dtype;
  check.tensor("dy_RD", op.dy_RD, {s.R, s.D}, dtype);
  check.tensor("dgate_up_R2F", op.dgate_up_R2F, {s.R, 2 * s.F}, dtype);
  check.tensor("hidden_RF", op.hidden_RF, {s.R, s.F}, dtype);
  check_weight_gradients(check, op, s, accumulation_dtype(dtype));
  check_offsets(check, stream, op.offsets_E1, s.E, s.R);
  if (stream.device == Device::cpu) {
    return visit_float(dtype, [&]<class T>() { backward_weights_cpu<T>(op, s); });
  }
  cuda::experts_backward_weights(op, stream);
}

}  // namespace memphis::kernels
