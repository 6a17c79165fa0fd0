// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "csrc/core/error.h"

// Products of small matrices that lie in the cache: a register-blocked kernel, the copies that it
// works on, and the memory for them. On a tile of 32 queries by 256 keys of width 32 in f32, one
// AVX-512 Xeon core, the three shapes of product reach 158 to 190 GFLOP/s, OpenBLAS's sgemm 27 to
// 30 (it copies its operands at every call).
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

// c[i, j] = (accumulate ? c[i, j] : 0) + sum over k of a[i, k] b[k, j]. Each element of a is
// broadcast, so a may be strided either way (transposed products cost nothing).
template <class A>
struct PanelProduct {
  A* c;
  std::int64_t c_row;
  const A* a;
  std::int64_t a_row;
  std::int64_t a_column;
  const A* b;
  std::int64_t b_row;
  std::int64_t b_panel;  // from one panel's columns to the next panel's
  std::int64_t rows;     // a multiple of kBlockRows
  std::int64_t panels;
  std::int64_t depth;
  bool accumulate = false;
};

template <class A>
void multiply_block(const PanelProduct<A>& op, A* c, const A* a, const A* b) {
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
    // stores that miss at its end would stall. Eight products of
    // 1024 x 688 x 128 on two shared Emerald Rapids cores, three rounds: 172, 165 and 184 GFLOP/s
    // without, 191, 179 and 237 with.
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

template <class A>
void multiply(const PanelProduct<A>& op) {
  for (std::int64_t panel = 0; panel < op.panels; ++panel) {
    for (std::int64_t row = 0; row < op.rows; row += kBlockRows) {
      multiply_block(op,
                     op.c + row * op.c_row + panel * kPanel<A>,
                     op.a + row * op.a_row,
                     op.b + panel * op.b_panel);
    }
  }
}

// Memory of this thread that only grows, so that a step after the first allocates nothing. Handed
// out front to back in pieces aligned to a vector; the next Scratch of the thread reuses all of it.
template <class A>
class Scratch {
 public:
  explicit Scratch(std::int64_t count) {
    thread_local std::vector<A> memory;
    const auto needed = static_cast<std::size_t>(count + kLanes);
    if (memory.size() < needed) {
      memory.resize(needed);
    }
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    const std::uintptr_t skipped = (kVectorBytes - address % kVectorBytes) % kVectorBytes;
    next_ = memory.data() + skipped / sizeof(A);
    end_ = memory.data() + memory.size();
  }

  A* take(std::int64_t count) {
    A* result = next_;
    next_ += round_up(count, kLanes);
    require(next_ <= end_, "a scratch holds its pieces");
    return result;
  }

 private:
  static constexpr std::int64_t kLanes = kVectorBytes / static_cast<std::int64_t>(sizeof(A));
  A* next_ = nullptr;
  A* end_ = nullptr;
};

// rows x padded_width, zero beyond `count` rows and `width` columns.
template <class T, class A>
void pack_rows(A* packed,
               std::int64_t padded_rows,
               std::int64_t padded_width,
               const T* source,
               std::int64_t source_stride,
               std::int64_t count,
               std::int64_t width) {
  for (std::int64_t row = 0; row < count; ++row) {
    A* to = packed + row * padded_width;
    const T* from = source + row * source_stride;
    for (std::int64_t h = 0; h < width; ++h) {
      to[h] = static_cast<A>(from[h]);
    }
    std::fill(to + width, to + padded_width, A{0});
  }
  std::fill(packed + count * padded_width, packed + padded_rows * padded_width, A{0});
}

// Panels of [width, kPanel]: element (key, h) at [key / kPanel, h, key % kPanel]. Zero beyond
// `count`.
template <class T, class A>
void pack_transposed(A* packed,
                     const T* source,
                     std::int64_t source_stride,
                     std::int64_t count,
                     std::int64_t width) {
  for (std::int64_t begin = 0; begin < count; begin += kPanel<A>) {
    A* panel = packed + begin * width;
    const std::int64_t keys = std::min(kPanel<A>, count - begin);
    for (std::int64_t h = 0; h < width; ++h) {
      for (std::int64_t key = 0; key < keys; ++key) {
        panel[h * kPanel<A> + key] = static_cast<A>(source[(begin + key) * source_stride + h]);
      }
      std::fill(panel + h * kPanel<A> + keys, panel + (h + 1) * kPanel<A>, A{0});
    }
  }
}

}  // namespace memphis::kernels::cpu
