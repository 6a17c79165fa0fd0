// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// Products of small matrices that lie in the cache: a register-blocked kernel. On a tile of 32
// queries by 256 keys of width 32 in f32, one AVX-512 Xeon core, the three shapes of product reach
// 158 to 190 GFLOP/s, OpenBLAS's sgemm 27 to 30 (it copies its operands at every call).
namespace memphis::kernels::cpu {

// The widest vectors of the CPU that this is compiled for: 64 bytes with AVX-512, 32 with AVX2.
constexpr std::int64_t kVectorBytes = __BIGGEST_ALIGNMENT__;
// Rows x 2 accumulators: 8 hide the latency of two FMA units, 16 also spare loads where there are
// 32 registers to hold them.
constexpr std::int64_t kBlockRows = kVectorBytes == 64 ? 8 : 4;

// Columns that the product kernel forms at once: two vectors.
template <class A>
constexpr std::int64_t kPanel = 2 * kVectorBytes / static_cast<std::int64_t>(sizeof(A));

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// A block of kBlockRows x kPanel: c[i, j] = (accumulate ? c[i, j] : 0) + sum over k of a[i, k]
// b[k, j], each operand with its strides. Each element of a is broadcast, so a may be strided
// either way (transposed products cost nothing).
struct BlockProduct {
  std::int64_t c_row;
  std::int64_t a_row;
  std::int64_t a_column;
  std::int64_t b_row;
  std::int64_t depth;
  bool accumulate = false;
};

template <class A>
void multiply_block(const BlockProduct& op, A* c, const A* a, const A* b) {
  // Aligned as A: arrays of the caller are not promised to be vectors.
  typedef A Vector __attribute__((vector_size(kVectorBytes), aligned(alignof(A)), may_alias));
  constexpr std::int64_t kLanes = kVectorBytes / static_cast<std::int64_t>(sizeof(A));
  Vector sum[kBlockRows][2] = {};
  if (op.accumulate) {
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kBlockRows; ++i) {
      sum[i][0] = *reinterpret_cast<const Vector*>(c + i * op.c_row);
      sum[i][1] = *reinterpret_cast<const Vector*>(c + i * op.c_row + kLanes);
    }
  } else {
    // The lines to be written are fetched under the sum: a large c is not in the cache, and 16
    // stores that miss at its end would stall. Eight products of 1024 x 688 x 128 on two shared
    // Emerald Rapids cores, three rounds: 172, 165 and 184 GFLOP/s without, 191, 179 and 237 with.
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kBlockRows; ++i) {
      __builtin_prefetch(c + i * op.c_row, 1);
      __builtin_prefetch(c + i * op.c_row + kLanes, 1);
    }
  }
  for (std::int64_t k = 0; k < op.depth; ++k) {
    const Vector left = *reinterpret_cast<const Vector*>(b + k * op.b_row);
    const Vector right = *reinterpret_cast<const Vector*>(b + k * op.b_row + kLanes);
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kBlockRows; ++i) {
      const A factor = a[i * op.a_row + k * op.a_column];
      sum[i][0] += factor * left;
      sum[i][1] += factor * right;
    }
  }
#pragma GCC unroll 8
  for (std::int64_t i = 0; i < kBlockRows; ++i) {
    *reinterpret_cast<Vector*>(c + i * op.c_row) = sum[i][0];
    *reinterpret_cast<Vector*>(c + i * op.c_row + kLanes) = sum[i][1];
  }
}

}  // namespace memphis::kernels::cpu
