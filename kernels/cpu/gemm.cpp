// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "csrc/core/parallel.h"
#include "kernels/cpu/panel_product.h"
#include "kernels/launch.h"

namespace memphis::kernels::cpu {
namespace {

// The products of a small model are short in one dim (128 or 344), where OpenBLAS spends a quarter
// of its time on copying operands into its own layout. Here b is copied once a tile, and a only
// where its rows cannot be read as they are. A training step of configs/bench_cpu.yaml on two
// Emerald Rapids cores takes 0.223 s with this and 0.248 s with OpenBLAS in its place.

// Depth of one pass: a panel of b is then 32 KiB in f32, within the first-level cache with the rows
// of a that pass by it.
constexpr std::int64_t kDepth = 256;

// Tiles of c. Each pays for its copy of b, and a reduction tile, long in k, where a is copied too, for
// that as well.
struct TileShape {
  std::int64_t rows;
  std::int64_t columns;
};
constexpr TileShape kRowTile = {.rows = 512, .columns = 768};
// The first shape that gives kFewTiles, or the last: a c of 128 x 256 would be a single tile of the
// first, which leaves other threads nothing, though the copy of b then serves fewer rows.
constexpr std::array<TileShape, 3> kReductionTiles = {
    {{.rows = 384, .columns = 384}, {.rows = 128, .columns = 256}, {.rows = 64, .columns = 256}}};
constexpr std::int64_t kFewTiles = 4;

// [0, count) in pieces of nearly one size, so that threads end together: as close to `target` as
// whole pieces come, since one piece of 1.4 targets costs less copying than two of 0.7. A cut
// within a panel would make a ragged edge.
constexpr std::int64_t kPieceMultiple = 32;
std::int64_t piece_size(std::int64_t count, std::int64_t target) {
  const std::int64_t num_pieces = std::max<std::int64_t>((count + target / 2) / target, 1);
  return ceil_div(ceil_div(count, num_pieces), kPieceMultiple) * kPieceMultiple;
}

constexpr std::int64_t largest_piece(std::int64_t target) {
  return round_up(target + target / 2, kPieceMultiple);
}

template <class In, class Out>
TileShape tile_shape(const Gemm<In, Out>& op) {
  const auto near = [&](const TileShape& target) -> TileShape {
    return {.rows = piece_size(op.m, target.rows), .columns = piece_size(op.n, target.columns)};
  };
  if (op.transpose_a == Transpose::no) {
    return near(kRowTile);
  }
  TileShape shape{};
  for (const TileShape& target : kReductionTiles) {
    shape = near(target);
    if (ceil_div(op.m, shape.rows) * ceil_div(op.n, shape.columns) >= kFewTiles) {
      break;
    }
  }
  return shape;
}

// Element (row, column) of an operand after its transposition.
template <class T>
T* element(
    T* matrix, Transpose transpose, std::int64_t stride, std::int64_t row, std::int64_t column) {
  return transpose == Transpose::yes ? matrix + column * stride + row
                                     : matrix + row * stride + column;
}

// Whether the kernel takes a as it is stored, along a row or across. Columns a page apart or more
// have a page each, which are more than a processor keeps the addresses of, and those half a page
// apart share a few sets of the caches: they would be gone before they are read again.
template <class In, class Out>
bool reads_where_it_lies(const Gemm<In, Out>& op) {
  constexpr std::int64_t kPage = 4096 / static_cast<std::int64_t>(sizeof(In));
  return std::is_same_v<In, Accumulator<In>> &&
         (op.transpose_a == Transpose::no || (op.lda < kPage && op.lda != kPage / 2));
}

// Copies rows of `count` <= kCount elements that lie `stride` apart into rows of kCount, zero
// beyond `count`. A count that the compiler knows makes a row one or two vectors.
template <std::int64_t kCount, class In, class Sum>
void copy_rows(
    const In* from, std::int64_t stride, std::int64_t rows, std::int64_t count, Sum* to) {
  if (count == kCount) {
    for (std::int64_t row = 0; row < rows; ++row) {
#pragma omp simd
      for (std::int64_t i = 0; i < kCount; ++i) {
        to[row * kCount + i] = static_cast<Sum>(from[row * stride + i]);
      }
    }
    return;
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < kCount; ++i) {
      to[row * kCount + i] = i < count ? static_cast<Sum>(from[row * stride + i]) : Sum{0};
    }
  }
}

template <class Vector, std::size_t... I>
void interleave(Vector& a, Vector& b, std::index_sequence<I...> /*lanes*/) {
  constexpr std::size_t kLanes = sizeof...(I);
  const Vector low = __builtin_shufflevector(a, b, (I % 2 * kLanes + I / 2)...);
  b = __builtin_shufflevector(a, b, (I % 2 * kLanes + I / 2 + kLanes / 2)...);
  a = low;
}

// to[k * kPanel + j] = from[j * stride + k] for j and k below the lanes of a vector. A round
// interleaves row i with row i + kLanes / 2, which rotates the bits of (row, lane) by one; when all
// bits of the lane have become bits of the row, rows are columns. One element a store, a task of
// experts_forward at D = 128, F = 344 spends 9 % of its time on the copies of its weights, so 4 %.
template <class T>
void transpose_square(const T* from, std::int64_t stride, T* to) {
  typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  constexpr std::size_t kLanes = kVectorBytes / sizeof(T);
  Vector rows[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) {
    rows[i] = *reinterpret_cast<const Vector*>(from + static_cast<std::int64_t>(i) * stride);
  }
#pragma GCC unroll 4
  for (std::size_t round = 1; round < kLanes; round *= 2) {
    Vector mixed[kLanes];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kLanes / 2; ++i) {
      mixed[2 * i] = rows[i];
      mixed[2 * i + 1] = rows[i + kLanes / 2];
      interleave(mixed[2 * i], mixed[2 * i + 1], std::make_index_sequence<kLanes>());
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kLanes; ++i) {
      rows[i] = mixed[i];
    }
  }
  for (std::size_t i = 0; i < kLanes; ++i) {
    *reinterpret_cast<Vector*>(to + static_cast<std::int64_t>(i) * kPanel<T>) = rows[i];
  }
}

// A panel of [depth, kPanel] from `columns` stored rows that are `stride` apart.
template <class In, class Sum>
void pack_transposed_panel(
    const In* from, std::int64_t stride, std::int64_t depth, std::int64_t columns, Sum* panel) {
  std::int64_t done = 0;
  if constexpr (std::is_same_v<In, Sum>) {
    constexpr std::int64_t kLanes = kPanel<Sum> / 2;
    for (; columns == kPanel<Sum> && done + kLanes <= depth; done += kLanes) {
      transpose_square(from + done, stride, panel + done * kPanel<Sum>);
      transpose_square(from + kLanes * stride + done, stride, panel + done * kPanel<Sum> + kLanes);
    }
  }
  if (columns < kPanel<Sum>) {
    std::fill_n(panel, depth * kPanel<Sum>, Sum{0});
  }
  // Reads along a stored row and writes across, one element a store.
  for (std::int64_t j = 0; j < columns; ++j) {
    for (std::int64_t k = done; k < depth; ++k) {
      panel[k * kPanel<Sum> + j] = static_cast<Sum>(from[j * stride + k]);
    }
  }
}

// Rows [begin, begin + depth) of b as panels of [depth, kPanel], zero beyond n.
template <class In, class Out, class Sum>
void pack_b(const Gemm<In, Out>& op, std::int64_t begin, std::int64_t depth, Sum* packed) {
  for (std::int64_t first = 0; first < op.n; first += kPanel<Sum>) {
    Sum* panel = packed + first * depth;
    const std::int64_t columns = std::min(kPanel<Sum>, op.n - first);
    if (op.transpose_b == Transpose::no) {
      copy_rows<kPanel<Sum>>(op.b + begin * op.ldb + first, op.ldb, depth, columns, panel);
      continue;
    }
    pack_transposed_panel(op.b + first * op.ldb + begin, op.ldb, depth, columns, panel);
  }
}

// Columns [begin, begin + depth) of a from row `first_row` on: blocks of [kBlockRows, depth], as
// rows or, where a is stored transposed, as columns; zero beyond m.
template <class In, class Out, class Sum>
void pack_a(const Gemm<In, Out>& op,
            std::int64_t first_row,
            std::int64_t begin,
            std::int64_t depth,
            Sum* packed) {
  for (std::int64_t first = first_row; first < op.m; first += kBlockRows) {
    Sum* block = packed + (first - first_row) * depth;
    const std::int64_t rows = std::min(kBlockRows, op.m - first);
    if (op.transpose_a == Transpose::yes) {
      copy_rows<kBlockRows>(op.a + begin * op.lda + first, op.lda, depth, rows, block);
      continue;
    }
    for (std::int64_t i = 0; i < kBlockRows; ++i) {
      for (std::int64_t k = 0; k < depth; ++k) {
        block[i * depth + k] =
            i < rows ? static_cast<Sum>(op.a[(first + i) * op.lda + begin + k]) : Sum{0};
      }
    }
  }
}

// The first `count` of a panel's elements: one masked move a vector.
template <class Sum>
void copy_columns(const Sum* from, std::int64_t count, Sum* to) {
#pragma omp simd
  for (std::int64_t j = 0; j < kPanel<Sum>; ++j) {
    if (j < count) {
      to[j] = from[j];
    }
  }
}

// One block of c, kBlockRows x kPanel, of which only rows x columns may exist.
template <class Sum>
void add_block(const BlockProduct& product,
               Sum* c,
               const Sum* a,
               const Sum* b,
               std::int64_t rows,
               std::int64_t columns) {
  if (rows == kBlockRows && columns == kPanel<Sum>) {
    multiply_block(product, c, a, b);
    return;
  }
  Sum edge[kBlockRows * kPanel<Sum>] = {};
  const std::int64_t c_row = product.c_row;
  if (product.accumulate) {
    for (std::int64_t i = 0; i < rows; ++i) {
      copy_columns(c + i * c_row, columns, edge + i * kPanel<Sum>);
    }
  }
  BlockProduct into_edge = product;
  into_edge.c_row = kPanel<Sum>;
  multiply_block(into_edge, edge, a, b);
  for (std::int64_t i = 0; i < rows; ++i) {
    copy_columns(edge + i * kPanel<Sum>, columns, c + i * c_row);
  }
}

// c [m, n] with row stride ldc, in the accumulation dtype. `packed` is all of b, or null.
template <class In, class Out, class Sum>
void sum_products(const Gemm<In, Out>& op,
                  const Sum* packed,
                  Sum* c,
                  std::int64_t ldc,
                  bool accumulate,
                  Scratch scratch) {
  // Rows that do not fill a block are copied in any case.
  const bool across = op.transpose_a == Transpose::yes;
  const std::int64_t direct_rows = reads_where_it_lies(op) ? op.m / kBlockRows * kBlockRows : 0;
  const std::int64_t longest = std::min(kDepth, op.k);
  const std::int64_t padded_columns = round_up(op.n, kPanel<Sum>);
  const std::int64_t b_count = packed == nullptr ? padded_columns * longest : 0;
  const std::int64_t a_count = round_up(op.m - direct_rows, kBlockRows) * longest;
  Sum* own_b = scratch.take<Sum>(b_count);
  Sum* packed_a = scratch.take<Sum>(a_count);

  Ahead ahead = op.ahead;
  const std::int64_t num_blocks =
      ceil_div(op.k, kDepth) * ceil_div(op.n, kPanel<Sum>) * ceil_div(op.m, kBlockRows);
  const std::int64_t lines = ceil_div(ahead.num_lines(), num_blocks);
  for (std::int64_t begin = 0; begin < op.k; begin += kDepth) {
    const std::int64_t depth = std::min(kDepth, op.k - begin);
    if (packed == nullptr) {
      pack_b(op, begin, depth, own_b);
    }
    const Sum* packed_b = packed == nullptr ? own_b : packed + begin * padded_columns;
    pack_a(op, direct_rows, begin, depth, packed_a);
    BlockProduct product{};
    product.c_row = ldc;
    product.a_row = across ? 1 : depth;
    product.a_column = across ? kBlockRows : 1;
    product.b_row = kPanel<Sum>;
    product.depth = depth;
    product.accumulate = accumulate || begin > 0;
    BlockProduct direct = product;
    (across ? direct.a_column : direct.a_row) = op.lda;
    for (std::int64_t column = 0; column < op.n; column += kPanel<Sum>) {
      const Sum* b = packed_b + column * depth;
      const std::int64_t columns = std::min(kPanel<Sum>, op.n - column);
      if constexpr (std::is_same_v<In, Sum>) {
        for (std::int64_t row = 0; row < direct_rows; row += kBlockRows) {
          const Sum* a = element(op.a, op.transpose_a, op.lda, row, begin);
          ahead.ask(lines);
          add_block(direct, c + row * ldc + column, a, b, kBlockRows, columns);
        }
      }
      for (std::int64_t row = direct_rows; row < op.m; row += kBlockRows) {
        const Sum* a = packed_a + (row - direct_rows) * depth;
        const std::int64_t rows = std::min(kBlockRows, op.m - row);
        ahead.ask(lines);
        add_block(product, c + row * ldc + column, a, b, rows, columns);
      }
    }
  }
}

// No products to add: c = 0, or c as it is.
template <class In, class Out>
void clear(const Gemm<In, Out>& op) {
  for (std::int64_t row = 0; row < op.m && !op.accumulate; ++row) {
    std::fill_n(op.c + row * op.ldc, op.n, static_cast<Out>(0.0F));
  }
}

// Where c is narrower than the sums: a tile of sums, rounded once at the end.
template <class In, class Out>
void rounded_products(const Gemm<In, Out>& op, const Accumulator<In>* packed, Scratch scratch) {
  using Sum = Accumulator<In>;
  Sum* sums = scratch.take<Sum>(op.m * op.n);
  sum_products(op, packed, sums, op.n, false, scratch);
  for (std::int64_t row = 0; row < op.m; ++row) {
    const Sum* from = sums + row * op.n;
    Out* to = op.c + row * op.ldc;
    for (std::int64_t column = 0; column < op.n; ++column) {
      const Sum old = op.accumulate ? static_cast<Sum>(to[column]) : Sum{0};
      to[column] = static_cast<Out>(from[column] + old);
    }
  }
}

}  // namespace

template <class In>
std::int64_t packed_count(std::int64_t k, std::int64_t n) {
  return round_up(n, kPanel<Accumulator<In>>) * k;
}

template <class In, class Out>
void pack(const Gemm<In, Out>& op, Accumulator<In>* packed) {
  const std::int64_t padded_columns = round_up(op.n, kPanel<Accumulator<In>>);
  for (std::int64_t begin = 0; begin < op.k; begin += kDepth) {
    pack_b(op, begin, std::min(kDepth, op.k - begin), packed + begin * padded_columns);
  }
}

template <class In, class Out>
std::int64_t gemm_scratch_bytes(const Gemm<In, Out>& op) {
  using Sum = Accumulator<In>;
  const std::int64_t depth = std::min(kDepth, op.k);
  const std::int64_t packed_rows =
      reads_where_it_lies(op) ? kBlockRows : round_up(op.m, kBlockRows);
  const std::int64_t sums = std::is_same_v<Out, Sum> ? 0 : op.m * op.n;
  return scratch_bytes<Sum>(round_up(op.n, kPanel<Sum>) * depth) +
         scratch_bytes<Sum>(packed_rows * depth) + scratch_bytes<Sum>(sums);
}

template <class In, class Out>
void gemm_packed(const Gemm<In, Out>& op, const Accumulator<In>* packed, Scratch scratch) {
  if (op.m == 0 || op.n == 0 || op.k == 0) {
    return clear(op);
  }
  if constexpr (std::is_same_v<Out, Accumulator<In>>) {
    sum_products(op, packed, op.c, op.ldc, op.accumulate, scratch);
  } else {
    rounded_products(op, packed, scratch);
  }
}

template <class In, class Out>
void gemm(const Gemm<In, Out>& op, Scratch scratch) {
  gemm_packed(op, static_cast<const Accumulator<In>*>(nullptr), scratch);
}

template <class In, class Out>
std::int64_t num_gemm_tiles(const Gemm<In, Out>& op) {
  if (op.m == 0 || op.n == 0) {
    return 0;
  }
  const TileShape tile = tile_shape(op);
  return ceil_div(op.m, tile.rows) * ceil_div(op.n, tile.columns);
}

template <class In, class Out>
std::int64_t gemm_tile_scratch_bytes() {
  const auto largest = [](Transpose transpose_a, TileShape target) {
    return gemm_scratch_bytes(
        Gemm<In, Out>{.transpose_a = transpose_a,
                      .m = largest_piece(target.rows),
                      .n = largest_piece(target.columns),
                      .k = kDepth,
                      .a = nullptr,
                      .lda = std::numeric_limits<std::int64_t>::max(),  // a is copied
                      .b = nullptr,
                      .ldb = 0,
                      .c = nullptr,
                      .ldc = 0});
  };
  return std::max(largest(Transpose::no, kRowTile),
                  largest(Transpose::yes, kReductionTiles.front()));
}

template <class In, class Out>
void gemm_tile(const Gemm<In, Out>& op, std::int64_t tile, Scratch scratch) {
  const TileShape shape = tile_shape(op);
  const std::int64_t tiles_across = ceil_div(op.n, shape.columns);
  const std::int64_t row = tile / tiles_across * shape.rows;
  const std::int64_t column = tile % tiles_across * shape.columns;
  Gemm<In, Out> part = op;
  part.ahead = {};  // each tile would ask for all of it
  part.m = std::min(shape.rows, op.m - row);
  part.n = std::min(shape.columns, op.n - column);
  part.a = element(op.a, op.transpose_a, op.lda, row, 0);
  part.b = element(op.b, op.transpose_b, op.ldb, 0, column);
  part.c = op.c + row * op.ldc + column;
  gemm(part, scratch);
}

template <class In, class Out>
void parallel_gemm(const Gemm<In, Out>& op) {
  const ThreadScratch scratch(gemm_tile_scratch_bytes<In, Out>());
  parallel_chunks(num_gemm_tiles(op),
                  [&](std::int64_t tile) { gemm_tile(op, tile, scratch.mine()); });
}

// NOLINTNEXTLINE(cppcoreguidelines-macro-usage): explicit instantiations cannot be made by a
// template.
#define MEMPHIS_INSTANTIATE_GEMM(In, Out)                                       \
  template std::int64_t gemm_scratch_bytes(const Gemm<In, Out>& op);            \
  template void gemm(const Gemm<In, Out>& op, Scratch scratch);                 \
  template void pack(const Gemm<In, Out>& op, Accumulator<In>* packed);         \
  template void gemm_packed(                                                    \
      const Gemm<In, Out>& op, const Accumulator<In>* packed, Scratch scratch); \
  template void parallel_gemm(const Gemm<In, Out>& op);                         \
  template std::int64_t num_gemm_tiles(const Gemm<In, Out>& op);                \
  template std::int64_t gemm_tile_scratch_bytes<In, Out>();                     \
  template void gemm_tile(const Gemm<In, Out>& op, std::int64_t tile, Scratch scratch);
MEMPHIS_INSTANTIATE_GEMM(double, double)
MEMPHIS_INSTANTIATE_GEMM(float, float)
MEMPHIS_INSTANTIATE_GEMM(bf16, bf16)
MEMPHIS_INSTANTIATE_GEMM(bf16, float)
#undef MEMPHIS_INSTANTIATE_GEMM
template std::int64_t packed_count<double>(std::int64_t k, std::int64_t n);
template std::int64_t packed_count<float>(std::int64_t k, std::int64_t n);
template std::int64_t packed_count<bf16>(std::int64_t k, std::int64_t n);

}  // namespace memphis::kernels::cpu
