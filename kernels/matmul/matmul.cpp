// SPDX-License-Identifier: Apache-2.0
#include "kernels/matmul/matmul.h"

#include <algorithm>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/cpu/gemm.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

using cpu::Gemm;
using cpu::Transpose;

OpCheck check(const MatmulForward& op, Stream stream) {
  OpCheck check("matmul_forward", stream);
  check.num_dims("x_TK", op.x_TK, 2);
  check.num_dims("weight_NK", op.weight_NK, 2);
  check.float_dtype("x_TK", op.x_TK.dtype);
  const DType dtype = op.x_TK.dtype;
  const std::int64_t T = op.x_TK.dim(0);
  const std::int64_t N = op.weight_NK.dim(0);
  const std::int64_t K = op.x_TK.dim(1);
  check.tensor("y_TN", op.y_TN, {T, N}, dtype);
  check.tensor("x_TK", op.x_TK, {T, K}, dtype);
  check.tensor("weight_NK", op.weight_NK, {N, K}, dtype);
  check.product(T, N, K);
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
    check.tensor("dx_TK", op.dx_TK, {T, K}, dtype);
    check.tensor("weight_NK", op.weight_NK, {N, K}, dtype);
    check.product(T, K, N);
  }
  if (op.dweight_NK.present()) {
    check.num_dims("dweight_NK", op.dweight_NK, 2);
    const std::int64_t K = op.dweight_NK.dim(1);
    check.tensor("dweight_NK", op.dweight_NK, {N, K}, accumulation_dtype(dtype));
    check.tensor("x_TK", op.x_TK, {T, K}, dtype);
    check.product(N, K, T);
  }
  return check;
}

template <class T>
void forward_cpu(const MatmulForward& op) {
  const std::int64_t N = op.weight_NK.dim(0);
  const std::int64_t K = op.weight_NK.dim(1);
  cpu::parallel_gemm<T, T>({.transpose_b = Transpose::yes,
                            .m = op.x_TK.dim(0),
                            .n = N,
                            .k = K,
                            .a = op.x_TK.as<T>(),
                            .lda = K,
                            .b = op.weight_NK.as<T>(),
                            .ldb = K,
                            .c = op.y_TN.as<T>(),
                            .ldc = N});
}

template <class T>
Gemm<T, T> dx_product(const MatmulBackward& op) {
  const std::int64_t K = op.dx_TK.dim(1);
  const std::int64_t N = op.dy_TN.dim(1);
  return {.m = op.dy_TN.dim(0),
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
  parallel_chunks(num_dweight_tiles + cpu::num_gemm_tiles(dx), [&](std::int64_t tile) {
    if (tile < num_dweight_tiles) {
      cpu::gemm_tile(dweight, tile, scratch.mine());
    } else {
      cpu::gemm_tile(dx, tile - num_dweight_tiles, scratch.mine());
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

}  // namespace memphis::kernels
