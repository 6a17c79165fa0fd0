// SPDX-License-Identifier: Apache-2.0
#include "kernels/grouped_matmul/grouped_matmul.h"

#include <algorithm>
#include <string>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/cpu/gemm.h"
#include "kernels/routing_check.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

using cpu::Gemm;
using cpu::Transpose;

// On the GPU a thread copies 8 bf16 at a time, and a row must begin where such a copy may.
void check_widths(
    const OpCheck& check, Stream stream, DType dtype, std::int64_t N, std::int64_t K) {
  constexpr std::int64_t kMultiple = 8;
  const bool holds = stream.device == Device::cpu || dtype != DType::bf16 ||
                     (N % kMultiple == 0 && K % kMultiple == 0);
  check.condition(holds, [&] {
    return "N " + std::to_string(N) + " and K " + std::to_string(K) +
           " are not both multiples of 8 (rows of bf16 are read 16 bytes at a time on the "
           "GPU); pad the widths, or use f32";
  });
}

OpCheck check(const GroupedMatmulForward& op, Stream stream) {
  OpCheck check("grouped_matmul_forward", stream);
  check.num_dims("x_RK", op.x_RK, 2);
  check.num_dims("weight_ENK", op.weight_ENK, 3);
  check.float_dtype("x_RK", op.x_RK.dtype);
  const DType dtype = op.x_RK.dtype;
  const std::int64_t R = op.x_RK.dim(0);
  const std::int64_t K = op.x_RK.dim(1);
  const std::int64_t E = op.weight_ENK.dim(0);
  const std::int64_t N = op.weight_ENK.dim(1);
  check.tensor("y_RN", op.y_RN, {R, N}, dtype);
  check.tensor("x_RK", op.x_RK, {R, K}, dtype);
  check.tensor("weight_ENK", op.weight_ENK, {E, N, K}, dtype);
  check_offsets(check, stream, op.offsets_E1, E, R);
  check_widths(check, stream, dtype, N, K);
  check.product(R, N, K);
  return check;
}

OpCheck check(const GroupedMatmulBackward& op, Stream stream) {
  OpCheck check("grouped_matmul_backward", stream);
  check.num_dims("dy_RN", op.dy_RN, 2);
  check.num_dims("offsets_E1", op.offsets_E1, 1);
  check.float_dtype("dy_RN", op.dy_RN.dtype);
  const DType dtype = op.dy_RN.dtype;
  const std::int64_t R = op.dy_RN.dim(0);
  const std::int64_t N = op.dy_RN.dim(1);
  const std::int64_t E = op.offsets_E1.dim(0) - 1;
  check.tensor("dy_RN", op.dy_RN, {R, N}, dtype);
  check_offsets(check, stream, op.offsets_E1, E, R);
  if (op.dx_RK.present()) {
    check.num_dims("dx_RK", op.dx_RK, 2);
    const std::int64_t K = op.dx_RK.dim(1);
    check.tensor("dx_RK", op.dx_RK, {R, K}, dtype);
    check.tensor("weight_ENK", op.weight_ENK, {E, N, K}, dtype);
    check_widths(check, stream, dtype, N, K);
    check.product(R, K, N);
  }
  if (op.dweight_ENK.present()) {
    check.num_dims("dweight_ENK", op.dweight_ENK, 3);
    const std::int64_t K = op.dweight_ENK.dim(2);
    check.tensor("dweight_ENK", op.dweight_ENK, {E, N, K}, accumulation_dtype(dtype));
    check.tensor("x_RK", op.x_RK, {R, K}, dtype);
    check_widths(check, stream, dtype, N, K);
    check.product(R, K, N);
  }
  return check;
}

// Calls compute(e, tile) for tile < count_of(e) of every expert e, all threads taking from one
// list: a region an expert would leave threads idle at the end of each. A thread finds its tile by
// walking the experts, which is nothing beside computing a tile.
template <class Count, class Compute>
void for_each_tile(std::int64_t num_experts, const Count& count_of, const Compute& compute) {
  std::int64_t num_tiles = 0;
  for (std::int64_t e = 0; e < num_experts; ++e) {
    num_tiles += count_of(e);
  }
  parallel_chunks(num_tiles, [&](std::int64_t tile) {
    std::int64_t e = 0;
    for (; tile >= count_of(e); ++e) {
      tile -= count_of(e);
    }
    compute(e, tile);
  });
}

template <class T>
void forward_cpu(const GroupedMatmulForward& op) {
  const std::int64_t N = op.y_RN.dim(1);
  const std::int64_t K = op.x_RK.dim(1);
  const auto* offsets = op.offsets_E1.as<std::int32_t>();
  const auto product_of = [&](std::int64_t e) {
    return Gemm<T, T>{.transpose_b = Transpose::yes,
                      .m = offsets[e + 1] - offsets[e],
                      .n = N,
                      .k = K,
                      .a = op.x_RK.as<T>() + offsets[e] * K,
                      .lda = K,
                      .b = op.weight_ENK.as<T>() + e * N * K,
                      .ldb = K,
                      .c = op.y_RN.as<T>() + offsets[e] * N,
                      .ldc = N};
  };
  const cpu::ThreadScratch scratch(cpu::gemm_tile_scratch_bytes<T, T>());
  for_each_tile(
      op.weight_ENK.dim(0),
      [&](std::int64_t e) { return cpu::num_gemm_tiles(product_of(e)); },
      [&](std::int64_t e, std::int64_t tile) {
        cpu::gemm_tile(product_of(e), tile, scratch.mine());
      });
}

// Both products of an expert follow one another, while its dy is in the cache: first the few, long
// tiles of dweight, then the many short ones of dx.
template <class T>
void backward_cpu(const GroupedMatmulBackward& op) {
  using Sum = Accumulator<T>;
  const std::int64_t N = op.dy_RN.dim(1);
  const auto* offsets = op.offsets_E1.as<std::int32_t>();
  const bool with_dweight = op.dweight_ENK.present();
  const bool with_dx = op.dx_RK.present();
  const bool add = op.weight_gradient == WeightGradient::add;
  const auto dweight_of = [&](std::int64_t e) {
    const std::int64_t K = op.dweight_ENK.dim(2);
    const std::int64_t rows = offsets[e + 1] - offsets[e];
    return Gemm<T, Sum>{.transpose_a = Transpose::yes,
                        .m = add && rows == 0 ? 0 : N,  // nothing to add: no tiles
                        .n = K,
                        .k = rows,
                        .a = op.dy_RN.as<T>() + offsets[e] * N,
                        .lda = N,
                        .b = op.x_RK.as<T>() + offsets[e] * K,
                        .ldb = K,
                        .c = op.dweight_ENK.as<Sum>() + e * N * K,
                        .ldc = K,
                        .accumulate = add};
  };
  const auto dx_of = [&](std::int64_t e) {
    const std::int64_t K = op.dx_RK.dim(1);
    return Gemm<T, T>{.m = offsets[e + 1] - offsets[e],
                      .n = K,
                      .k = N,
                      .a = op.dy_RN.as<T>() + offsets[e] * N,
                      .lda = N,
                      .b = op.weight_ENK.as<T>() + e * N * K,
                      .ldb = K,
                      .c = op.dx_RK.as<T>() + offsets[e] * K,
                      .ldc = K};
  };
  const auto num_dweight_tiles = [&](std::int64_t e) {
    return with_dweight ? cpu::num_gemm_tiles(dweight_of(e)) : 0;
  };
  const cpu::ThreadScratch scratch(
      std::max(cpu::gemm_tile_scratch_bytes<T, Sum>(), cpu::gemm_tile_scratch_bytes<T, T>()));
  for_each_tile(
      op.offsets_E1.dim(0) - 1,
      [&](std::int64_t e) {
        return num_dweight_tiles(e) + (with_dx ? cpu::num_gemm_tiles(dx_of(e)) : 0);
      },
      [&](std::int64_t e, std::int64_t tile) {
        if (tile < num_dweight_tiles(e)) {
          cpu::gemm_tile(dweight_of(e), tile, scratch.mine());
        } else {
          cpu::gemm_tile(dx_of(e), tile - num_dweight_tiles(e), scratch.mine());
        }
      });
}

}  // namespace

void grouped_matmul_forward(const GroupedMatmulForward& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::grouped_matmul_forward(op, stream);
  }
  visit_float(op.x_RK.dtype, [&]<class T>() { forward_cpu<T>(op); });
}

void grouped_matmul_backward(const GroupedMatmulBackward& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::grouped_matmul_backward(op, stream);
  }
  visit_float(op.dy_RN.dtype, [&]<class T>() { backward_cpu<T>(op); });
}

}  // namespace memphis::kernels
