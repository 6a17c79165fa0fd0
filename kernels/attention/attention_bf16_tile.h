// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <gpu_mma.h>
#include <gpu_warp.h>

#include "kernels/attention/attention_gpu.h"

// Products of a warp on tiles in shared memory. A warp owns 16 rows of the left operand and of the
// result; accumulators and fragments are laid out as gpu_mma.h says.
namespace memphis::kernels::cuda {

constexpr int kWarpRows = 16;

// c[16, 8 * kColumnTiles] += a b^T: a is 16 rows and b kColumnTiles * 8 rows of kWidth columns,
// both row-major in shared memory (q k^T and its like).
template <int kWidth, int kColumnTiles>
__device__ __forceinline__ void multiply_transposed(float (&c)[kColumnTiles][4],
                                                    const bf16* a,
                                                    const bf16* b) {
  constexpr int kStride = kRowStride<bf16, kWidth>;
  const int lane = gpu::lane_id();
  // The 8x8 matrices of a: rows 0-7, rows 8-15, then both again 8 columns on.
  const bf16* const a_row = a + lane % 16 * kStride + lane / 16 * 8;
  // Of b, whose rows are the columns of the product: columns 0-7, columns 8-15 of rows 0-7, then of
  // rows 8-15.
  const bf16* const b_row = b + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    std::uint32_t left[4];
    gpu::load_matrix_x4(left, a_row + k);
#pragma unroll
    for (int tile = 0; tile < kColumnTiles; tile += 2) {
      std::uint32_t right[4];
      gpu::load_matrix_x4(right, b_row + tile * 8 * kStride + k);
      gpu::mma_m16n8k16(c[tile], left, right[0], right[1]);
      gpu::mma_m16n8k16(c[tile + 1], left, right[2], right[3]);
    }
  }
}

// c[16, kWidth] += p b: p [16, 8 * kDepthTiles] as the accumulators of an earlier product, rounded
// to bf16 here, b kDepthTiles * 8 rows of kWidth columns in shared memory (p v and its like). Two
// tiles of accumulators side by side are one fragment of a left operand.
template <int kWidth, int kDepthTiles>
__device__ __forceinline__ void multiply_accumulators(float (&c)[kWidth / 8][4],
                                                      const float (&p)[kDepthTiles][4],
                                                      const bf16* b) {
  constexpr int kStride = kRowStride<bf16, kWidth>;
  const int lane = gpu::lane_id();
  // The 8x8 matrices of b, transposed on the way: rows 0-7, rows 8-15, then both again 8 columns
  // on.
  const bf16* const b_row = b + lane % 16 * kStride + lane / 16 * 8;
#pragma unroll
  for (int depth = 0; depth < kDepthTiles; depth += 2) {
    const std::uint32_t left[4] = {gpu::pack_bf16(p[depth][0], p[depth][1]),
                                   gpu::pack_bf16(p[depth][2], p[depth][3]),
                                   gpu::pack_bf16(p[depth + 1][0], p[depth + 1][1]),
                                   gpu::pack_bf16(p[depth + 1][2], p[depth + 1][3])};
#pragma unroll
    for (int tile = 0; tile < kWidth / 8; tile += 2) {
      std::uint32_t right[4];
      gpu::load_matrix_x4_transposed(right, b_row + depth * 8 * kStride + tile * 8);
      gpu::mma_m16n8k16(c[tile], left, right[0], right[1]);
      gpu::mma_m16n8k16(c[tile + 1], left, right[2], right[3]);
    }
  }
}

// The row and the column, within a warp's tile, of accumulator `element` of column tile `tile`.
__device__ __forceinline__ int accumulator_row(int element) {
  return gpu::lane_id() / 4 + element / 2 * 8;
}
__device__ __forceinline__ int accumulator_column(int tile, int element) {
  return tile * 8 + gpu::lane_id() % 4 * 2 + element % 2;
}

// Rounds and stores a warp's 16 rows, the first of which is row `first` of `head`; rows from `end`
// and columns from `width` on are padding.
template <int kWidth>
__device__ __forceinline__ void store_rows(bf16* head,
                                           std::int64_t stride,
                                           const float (&c)[kWidth / 8][4],
                                           int first,
                                           int end,
                                           int width) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + accumulator_row(2 * half);
    if (row >= end) {
      continue;
    }
#pragma unroll
    for (int tile = 0; tile < kWidth / 8; ++tile) {
      if (tile * 8 < width) {
        auto* const to =
            reinterpret_cast<std::uint32_t*>(head + row * stride + accumulator_column(tile, 0));
        *to = gpu::pack_bf16(c[tile][2 * half], c[tile][2 * half + 1]);
      }
    }
  }
}

}  // namespace memphis::kernels::cuda
