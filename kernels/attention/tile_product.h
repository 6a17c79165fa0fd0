// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/panel_product.h"

// The products of a tile of attention scores, and the copies that they read.
namespace memphis::kernels::cpu {

// c = a b, or c += a b, of whole blocks; strides as in BlockProduct.
template <class A>
struct TileProduct {
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
void multiply(const TileProduct<A>& op) {
  const BlockProduct block{.c_row = op.c_row,
                           .a_row = op.a_row,
                           .a_column = op.a_column,
                           .b_row = op.b_row,
                           .depth = op.depth,
                           .accumulate = op.accumulate};
  for (std::int64_t panel = 0; panel < op.panels; ++panel) {
    for (std::int64_t row = 0; row < op.rows; row += kBlockRows) {
      multiply_block(block,
                     op.c + row * op.c_row + panel * kPanel<A>,
                     op.a + row * op.a_row,
                     op.b + panel * op.b_panel);
    }
  }
}

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
