// SPDX-License-Identifier: Apache-2.0
#include "kernels/matmul/matmul.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "csrc/core/instruction_set.h"
#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/cpu/gemm.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

using cpu::Gemm;
using cpu::Transpose;

// Rows of a run, of an operand that has so many from the first to the last.
std::int64_t rows_of_run(const RowRuns& runs, std::int64_t rows, std::int64_t step) {
  return rows - (runs.count - 1) * step;
}

// `read` and `written` have runs of the same rows, which do not overlap.
void check_runs(const OpCheck& check,
                const RowRuns& runs,
                const TensorView& read,
                const TensorView& written) {
  if (runs.count == 1) {
    return;
  }
  const std::int64_t rows = rows_of_run(runs, read.dim(0), runs.read_step);
  check.condition(
      runs.count > 1 && rows > 0 && rows == rows_of_run(runs, written.dim(0), runs.written_step) &&
          runs.read_step >= rows && runs.written_step >= rows,
      "runs of rows overlap, or are not as long in what is read as in what is written (an operand "
      "spans from the first row of the first run to the last of the last); correct the steps");
  for (const auto& [view, step] :
       {std::pair(&read, runs.read_step), std::pair(&written, runs.written_step)}) {
    const auto between = static_cast<std::size_t>((runs.count - 1) * (step - rows));
    check.untouched(static_cast<double>(between * size_of(view->dtype)) *
                    static_cast<double>(view->dim(1)));
  }
}

OpCheck check(const MatmulForward& op, Stream stream) {
  OpCheck check("matmul_forward", stream);
  check.num_dims("x_TK", op.x_TK, 2);
  check.num_dims("y_TN", op.y_TN, 2);
  check.num_dims("weight_NK", op.weight_NK, 2);
  check.float_dtype("x_TK", op.x_TK.dtype);
  const DType dtype = op.x_TK.dtype;
  const std::int64_t T = op.x_TK.dim(0);
  const std::int64_t N = op.weight_NK.dim(0);
  const std::int64_t K = op.x_TK.dim(1);
  check.tensor("y_TN", op.y_TN, {op.runs.count == 1 ? T : op.y_TN.dim(0), N}, dtype);
  check.tensor("x_TK", op.x_TK, {T, K}, dtype);
  check.tensor("weight_NK", op.weight_NK, {N, K}, dtype);
  check_runs(check, op.runs, op.x_TK, op.y_TN);
  check.product(op.runs.count * rows_of_run(op.runs, T, op.runs.read_step), N, K);
  return check;
}

OpCheck check(const MatmulBackward& op, Stream stream) {
  OpCheck check("matmul_backward", stream);
  check.num_dims("dy_TN", op.dy_TN, 2);
  check.float_dtype("dy_TN", op.dy_TN.dtype);
  const DType dtype = op.dy_TN.dtype;
  const std::int64_t T = op.dy_TN.dim(0);
  const std::int64_t N = op.dy_TN.dim(1);
  check.tensor("dy_TN", op.dy_TN, {T, N}, dtype);
  if (op.dx_TK.present()) {
    check.num_dims("dx_TK", op.dx_TK, 2);
    const std::int64_t K = op.dx_TK.dim(1);
    check.tensor("dx_TK", op.dx_TK, {op.runs.count == 1 ? T : op.dx_TK.dim(0), K}, dtype);
    check.tensor("weight_NK", op.weight_NK, {N, K}, dtype);
    check_runs(check, op.runs, op.dy_TN, op.dx_TK);
    check.product(op.runs.count * rows_of_run(op.runs, T, op.runs.read_step), K, N);
  }
  if (op.dweight_NK.present()) {
    check.condition(op.runs.count == 1,
                    "dweight takes all rows, and there are runs of them; leave one of the two out");
    check.num_dims("dweight_NK", op.dweight_NK, 2);
    const std::int64_t K = op.dweight_NK.dim(1);
    check.tensor("dweight_NK", op.dweight_NK, {N, K}, accumulation_dtype(dtype));
    check.tensor("x_TK", op.x_TK, {T, K}, dtype);
    check.product(N, K, T);
  }
  return check;
}

// Tile `tile` of all runs', of the product `first` of the first run.
template <class T>
void tile_of_runs(const Gemm<T, T>& first,
                  const RowRuns& runs,
                  std::int64_t tile,
                  cpu::Scratch scratch) {
  const std::int64_t tiles = cpu::num_gemm_tiles(first);
  Gemm<T, T> run = first;
  run.a += tile / tiles * runs.read_step * first.lda;
  run.c += tile / tiles * runs.written_step * first.ldc;
  cpu::gemm_tile(run, tile % tiles, scratch);
}

template <class T>
void forward_cpu(const MatmulForward& op) {
  const std::int64_t N = op.weight_NK.dim(0);
  const std::int64_t K = op.weight_NK.dim(1);
  const Gemm<T, T> first = {.transpose_b = Transpose::yes,
                            .m = rows_of_run(op.runs, op.x_TK.dim(0), op.runs.read_step),
                            .n = N,
                            .k = K,
                            .a = op.x_TK.as<T>(),
                            .lda = K,
                            .b = op.weight_NK.as<T>(),
                            .ldb = K,
                            .c = op.y_TN.as<T>(),
                            .ldc = N};
  const cpu::ThreadScratch scratch(cpu::gemm_tile_scratch_bytes<T, T>());
  parallel_chunks(op.runs.count * cpu::num_gemm_tiles(first),
                  [&](std::int64_t tile) { tile_of_runs(first, op.runs, tile, scratch.mine()); });
}

template <class T>
Gemm<T, T> dx_product(const MatmulBackward& op) {
  const std::int64_t K = op.dx_TK.dim(1);
  const std::int64_t N = op.dy_TN.dim(1);
  return {.m = rows_of_run(op.runs, op.dy_TN.dim(0), op.runs.read_step),
          .n = K,
          .k = N,
          .a = op.dy_TN.as<T>(),
          .lda = N,
          .b = op.weight_NK.as<T>(),
          .ldb = K,
          .c = op.dx_TK.as<T>(),
          .ldc = K,
          .accumulate = op.accumulate};
}

template <class T>
Gemm<T, Accumulator<T>> dweight_product(const MatmulBackward& op) {
  const std::int64_t K = op.dweight_NK.dim(1);
  const std::int64_t N = op.dy_TN.dim(1);
  return {.transpose_a = Transpose::yes,
          .m = N,
          .n = K,
          .k = op.dy_TN.dim(0),
          .a = op.dy_TN.as<T>(),
          .lda = N,
          .b = op.x_TK.as<T>(),
          .ldb = K,
          .c = op.dweight_NK.as<Accumulator<T>>(),
          .ldc = K,
          .accumulate = op.weight_gradient == WeightGradient::add};
}

// Both products in one region: the few, long tiles of dweight go first and the many short ones of
// dx fill up the threads that are left.
template <class T>
void backward_cpu(const MatmulBackward& op) {
  Gemm<T, Accumulator<T>> dweight{};
  Gemm<T, T> dx{};
  if (op.dweight_NK.present()) {
    dweight = dweight_product<T>(op);
  }
  if (op.dx_TK.present()) {
    dx = dx_product<T>(op);
  }
  const std::int64_t num_dweight_tiles = cpu::num_gemm_tiles(dweight);
  const cpu::ThreadScratch scratch(std::max(cpu::gemm_tile_scratch_bytes<T, Accumulator<T>>(),
                                            cpu::gemm_tile_scratch_bytes<T, T>()));
  const std::int64_t num_dx_tiles = op.runs.count * cpu::num_gemm_tiles(dx);
  parallel_chunks(num_dweight_tiles + num_dx_tiles, [&](std::int64_t tile) {
    if (tile < num_dweight_tiles) {
      cpu::gemm_tile(dweight, tile, scratch.mine());
    } else {
      tile_of_runs(dx, op.runs, tile - num_dweight_tiles, scratch.mine());
    }
  });
}

}  // namespace

void matmul_forward(const MatmulForward& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::matmul_forward(op, stream);
  }
  visit_float(op.x_TK.dtype, [&]<class T>() { forward_cpu<T>(op); });
}

void matmul_backward(const MatmulBackward& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::matmul_backward(op, stream);
  }
  visit_float(op.dy_TN.dtype, [&]<class T>() { backward_cpu<T>(op); });
}

std::string matmul_library(Device device) {
  return device == Device::cuda ? cuda::matmul_library()
                                : "loops compiled for " + instruction_set();
}

void open_matmul_library(Device device, std::int64_t held_multiprocessors) {
  if (device == Device::cuda) {
    cuda::open_matmul_library(held_multiprocessors);
  }
}

std::vector<std::string> matmul_choices(Device device) {
  return device == Device::cuda ? cuda::matmul_choices() : std::vector<std::string>();
}

}  // namespace memphis::kernels
