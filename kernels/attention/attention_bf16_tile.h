// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include <gpu_math.h>
#include <gpu_mma.h>
#include <gpu_warp.h>

#include "kernels/attention/attention_gpu.h"
#include "kernels/device/soft_cap.h"

// Products of a warp on tiles in shared memory, and what their scores go through. A warp owns 16
// rows of the left operand and of the result; accumulators and fragments are laid out as gpu_mma.h
// says.
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
__device__ __forceinline__ void store_rows(
    const HeadRows<bf16>& head, const float (&c)[kWidth / 8][4], int first, int end, int width) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + accumulator_row(2 * half);
    if (row >= end) {
      continue;
    }
#pragma unroll
    for (int tile = 0; tile < kWidth / 8; ++tile) {
      if (tile * 8 < width) {
        auto* const to = reinterpret_cast<std::uint32_t*>(head.data + row * head.stride +
                                                          accumulator_column(tile, 0));
        *to = gpu::pack_bf16(c[tile][2 * half], c[tile][2 * half + 1]);
      }
    }
  }
}

// What a query's logits have in common: factor * v + shift is the logit, in units of ln 2, of the
// score that Bend makes v of; slope times v's is the logit's derivative by q.k, in its own units.
struct LogitFactors {
  float factor;
  float shift;
  float slope;
};

// The part of a logit that is the same for all queries. With a cap v is r of soft_cap.h.
template <bool kCapped>
class Bend {
 public:
  __device__ __forceinline__ explicit Bend(const AttentionArguments<bf16>& arguments)
      : cap_(arguments.cap),
        scale_(arguments.scale),
        exponent_(kCapped ? 2.0F * kLog2E * (arguments.scale / arguments.cap) : 0.0F) {}

  __device__ __forceinline__ LogitFactors factors(float temperature) const {
    const float bound = kLog2E * cap_ * temperature;
    const float slope = scale_ * temperature;
    if constexpr (kCapped) {
      return {-2.0F * bound, bound, 4.0F * slope};
    }
    return {kLog2E * slope, 0.0F, slope};
  }
  // v of q.k
  __device__ __forceinline__ float operator()(float product) const {
    return kCapped ? gpu::soft_cap_tail(exponent_ * product) : product;
  }
  // slope times this is the derivative
  __device__ __forceinline__ float slope(float v, float slope) const {
    return kCapped ? slope * fmaf(-v, v, v) : slope;
  }

 private:
  float cap_;
  float scale_;
  float exponent_;
};

// Calls visitor.operator()<kWidth, kCapped>(), see visit_head_width.
template <class Visitor>
void visit_attention(const AttentionArguments<bf16>& arguments, const Visitor& visitor) {
  visit_head_width(arguments.shape.H, [&]<int kWidth>() {
    if (arguments.cap > 0.0F) {
      visitor.template operator()<kWidth, true>();
    } else {
      visitor.template operator()<kWidth, false>();
    }
  });
}

// Which of the 32 keys from `first` on are keys at all, as bits; the whole warp calls.
__device__ __forceinline__ std::uint32_t valid_keys(const AttentionHead<bf16>& head, int first) {
  if (head.arguments.key_valid == nullptr) {
    return gpu::kFullMask;
  }
  const int s = first + gpu::lane_id();
  return gpu::ballot(s < head.num_keys() && head.key_valid(s));
}

// Bits [begin, end) of 32, of bounds that may lie outside.
__device__ __forceinline__ std::uint32_t bits_between(int begin, int end) {
  const int low = begin > 0 ? begin : 0;
  const int high = end < 32 ? end : 32;
  return low < high ? gpu::kFullMask << low & gpu::kFullMask >> (32 - high) : 0U;
}
// Whether the bit of accumulator `element` of column tile `tile`, of the word that tile's columns
// are in, is set; `bits` has been shifted by accumulator_column(0, 0).
__device__ __forceinline__ bool is_allowed(std::uint32_t bits, int tile, int element) {
  return (bits >> (tile % 4 * 8 + element % 2) & 1U) != 0;
}

}  // namespace memphis::kernels::cuda
