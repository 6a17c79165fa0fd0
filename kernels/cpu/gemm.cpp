// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <string_view>
#include <type_traits>
#include <vector>

#include <cblas.h>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "kernels/launch.h"

// OpenBLAS's own choice of kernels. A build of it for one CPU alone has no such choice: weak.
extern "C" {
[[gnu::weak]] void gotoblas_dynamic_init();
[[gnu::weak]] void gotoblas_dynamic_quit();
}

namespace memphis::kernels::cpu {
namespace {

// The kernels for this CPU where OpenBLAS has fallen back to its oldest (SSE3), which it does on
// any model number newer than itself; null where its own choice is a good one. Measured with 0.3.21
// on an Emerald Rapids core, sgemm of 1024^3: Prescott 33 GFLOP/s, SkylakeX 156.
const char* better_core() {
  if (gotoblas_dynamic_init == nullptr || gotoblas_dynamic_quit == nullptr ||
      std::string_view(openblas_get_corename()) != "Prescott") {
    return nullptr;
  }
  if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0) {
    return "SkylakeX";
  }
  if (__builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0) {
    return "Haswell";
  }
  return nullptr;
}

bool configure_openblas() {
  constexpr const char* kVariable =
      "OPENBLAS_CORETYPE";  // OpenBLAS's; what the user sets there holds
  const char* core = std::getenv(kVariable) == nullptr ? better_core() : nullptr;
  if (core != nullptr) {
    // The library chooses once, when it is loaded; asked again, it follows the variable.
    setenv(kVariable, core, 1);
    gotoblas_dynamic_quit();
    gotoblas_dynamic_init();
    unsetenv(kVariable);
  }
  openblas_set_num_threads(1);
  return true;
}

// Before main: no other thread can be inside OpenBLAS or reading the environment.
[[maybe_unused]] const bool configured = configure_openblas();

// Tiles of c, measured at the shapes of a small model (T 4096, D 128, F 344) with the SkylakeX
// kernels. For y = x w^T and dx = dy w, 512 rows are where the packing of w (once a tile) is paid
// for: 154 GFLOP/s a thread of 156, 138 with 128 rows. In dw = dy^T x both operands are packed once
// a tile over the long reduction: 344 x 128 gives 150, 128 x 128 127.
struct TileShape {
  std::int64_t rows;
  std::int64_t columns;
};
constexpr TileShape kRowTile = {.rows = 512, .columns = 768};
constexpr TileShape kReductionTile = {.rows = 384, .columns = 384};

// [0, count) in pieces of nearly one size, so that threads end together: as close to `target` as
// whole pieces come, since one piece of 1.4 targets costs less packing than two of 0.7. 16 columns
// are the width of OpenBLAS's kernels, so a cut elsewhere would make a ragged edge.
constexpr std::int64_t kPieceMultiple = 16;
std::int64_t piece_size(std::int64_t count, std::int64_t target) {
  const std::int64_t num_pieces = std::max<std::int64_t>((count + target / 2) / target, 1);
  return ceil_div(ceil_div(count, num_pieces), kPieceMultiple) * kPieceMultiple;
}

template <class In, class Out>
TileShape tile_shape(const Gemm<In, Out>& op) {
  const TileShape target = op.transpose_a == Transpose::yes ? kReductionTile : kRowTile;
  return {.rows = piece_size(op.m, target.rows), .columns = piece_size(op.n, target.columns)};
}

blasint blas_int(std::int64_t value) {
  require(value <= std::numeric_limits<blasint>::max(),
          "a matrix dim exceeds the integers of OpenBLAS (2^31 - 1); use smaller batches");
  return static_cast<blasint>(value);
}
CBLAS_TRANSPOSE blas_transpose(Transpose transpose) {
  return transpose == Transpose::yes ? CblasTrans : CblasNoTrans;
}

template <class T>
void blas_gemm(const Gemm<T, T>& op) {
  const auto call = [&](auto* function) {
    // OpenBLAS refuses a stride of 0, which a matrix without elements may have.
    const auto stride = [](std::int64_t value) {
      return blas_int(std::max<std::int64_t>(value, 1));
    };
    function(CblasRowMajor,
             blas_transpose(op.transpose_a),
             blas_transpose(op.transpose_b),
             blas_int(op.m),
             blas_int(op.n),
             blas_int(op.k),
             op.alpha,
             op.a,
             stride(op.lda),
             op.b,
             stride(op.ldb),
             op.beta,
             op.c,
             stride(op.ldc));
  };
  if constexpr (std::is_same_v<T, double>) {
    call(cblas_dgemm);
  } else {
    call(cblas_sgemm);
  }
}

// Element (row, column) of an operand after its transposition.
template <class T>
T* element(
    T* matrix, Transpose transpose, std::int64_t stride, std::int64_t row, std::int64_t column) {
  return transpose == Transpose::yes ? matrix + column * stride + row
                                     : matrix + row * stride + column;
}

// A block of rows x columns as it is stored.
void widen(const bf16* source,
           std::int64_t stride,
           float* block,
           std::int64_t rows,
           std::int64_t columns) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      block[row * columns + column] = source[row * stride + column];
    }
  }
}

// 256: one block of each operand and of c is 768 KiB together, inside a 1 or 2 MiB second-level
// cache, and an element is widened once for 512 FLOP.
constexpr std::int64_t kBlock = 256;
struct Scratch {
  std::vector<float> a = std::vector<float>(kBlock * kBlock);
  std::vector<float> b = std::vector<float>(kBlock * kBlock);
  std::vector<float> c = std::vector<float>(kBlock * kBlock);
};

// One block of c, the sum over all of k in f32, then rounded once.
template <class Out>
void widened_block(const Gemm<bf16, Out>& op,
                   std::int64_t row,
                   std::int64_t rows,
                   std::int64_t column,
                   std::int64_t columns,
                   Scratch& scratch) {
  std::fill_n(scratch.c.begin(), rows * columns, 0.0F);
  for (std::int64_t begin = 0; begin < op.k; begin += kBlock) {
    const std::int64_t depth = std::min(kBlock, op.k - begin);
    const bool a_is_km = op.transpose_a == Transpose::yes;
    const bool b_is_nk = op.transpose_b == Transpose::yes;
    const std::int64_t a_columns = a_is_km ? rows : depth;
    const std::int64_t b_columns = b_is_nk ? depth : columns;
    widen(element(op.a, op.transpose_a, op.lda, row, begin),
          op.lda,
          scratch.a.data(),
          a_is_km ? depth : rows,
          a_columns);
    widen(element(op.b, op.transpose_b, op.ldb, begin, column),
          op.ldb,
          scratch.b.data(),
          b_is_nk ? columns : depth,
          b_columns);
    blas_gemm<float>({.transpose_a = op.transpose_a,
                      .transpose_b = op.transpose_b,
                      .m = rows,
                      .n = columns,
                      .k = depth,
                      .a = scratch.a.data(),
                      .lda = a_columns,
                      .b = scratch.b.data(),
                      .ldb = b_columns,
                      .c = scratch.c.data(),
                      .ldc = columns,
                      .beta = 1});
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    const float* sums = scratch.c.data() + i * columns;
    Out* c = op.c + (row + i) * op.ldc + column;
    for (std::int64_t j = 0; j < columns; ++j) {
      const float old = op.beta == 0.0F ? 0.0F : op.beta * static_cast<float>(c[j]);
      c[j] = static_cast<Out>(op.alpha * sums[j] + old);
    }
  }
}

template <class Out>
void widened_gemm(const Gemm<bf16, Out>& op) {
  thread_local Scratch scratch;  // made once a thread, at its first product
  for (std::int64_t row = 0; row < op.m; row += kBlock) {
    for (std::int64_t column = 0; column < op.n; column += kBlock) {
      widened_block(
          op, row, std::min(kBlock, op.m - row), column, std::min(kBlock, op.n - column), scratch);
    }
  }
}

}  // namespace

template <class In, class Out>
void gemm(const Gemm<In, Out>& op) {
  if (op.m == 0 || op.n == 0) {
    return;
  }
  if constexpr (std::is_same_v<In, bf16>) {
    widened_gemm(op);
  } else {
    blas_gemm(op);
  }
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
void gemm_tile(const Gemm<In, Out>& op, std::int64_t tile) {
  const TileShape shape = tile_shape(op);
  const std::int64_t tiles_across = ceil_div(op.n, shape.columns);
  const std::int64_t row = tile / tiles_across * shape.rows;
  const std::int64_t column = tile % tiles_across * shape.columns;
  Gemm<In, Out> part = op;
  part.m = std::min(shape.rows, op.m - row);
  part.n = std::min(shape.columns, op.n - column);
  part.a = element(op.a, op.transpose_a, op.lda, row, 0);
  part.b = element(op.b, op.transpose_b, op.ldb, 0, column);
  part.c = op.c + row * op.ldc + column;
  gemm(part);
}

template <class In, class Out>
void parallel_gemm(const Gemm<In, Out>& op) {
  parallel_chunks(num_gemm_tiles(op), [&](std::int64_t tile) { gemm_tile(op, tile); });
}

// NOLINTNEXTLINE(cppcoreguidelines-macro-usage): explicit instantiations cannot be made by a
// template.
#define MEMPHIS_INSTANTIATE_GEMM(In, Out)                        \
  template void gemm(const Gemm<In, Out>& op);                   \
  template void parallel_gemm(const Gemm<In, Out>& op);          \
  template std::int64_t num_gemm_tiles(const Gemm<In, Out>& op); \
  template void gemm_tile(const Gemm<In, Out>& op, std::int64_t tile);
MEMPHIS_INSTANTIATE_GEMM(double, double)
MEMPHIS_INSTANTIATE_GEMM(float, float)
MEMPHIS_INSTANTIATE_GEMM(bf16, bf16)
MEMPHIS_INSTANTIATE_GEMM(bf16, float)
#undef MEMPHIS_INSTANTIATE_GEMM

double measure_openblas_sgemm(std::int64_t n, int num_threads, int repeats) {
  const auto count = static_cast<std::size_t>(n * n);
  std::vector<float> a(count);
  std::vector<float> b(count);
  std::vector<float> c(count);
  for (std::size_t i = 0; i < count; ++i) {
    a[i] = static_cast<float>(i % 251) / 251.0F;
    b[i] = static_cast<float>(i % 241) / 241.0F;
  }
  openblas_set_num_threads(num_threads);
  double best_seconds = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    blas_gemm<float>({.m = n,
                      .n = n,
                      .k = n,
                      .a = a.data(),
                      .lda = n,
                      .b = b.data(),
                      .ldb = n,
                      .c = c.data(),
                      .ldc = n});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best_seconds = std::min(best_seconds, seconds.count());
  }
  openblas_set_num_threads(1);
  return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) /
         best_seconds;
}

}  // namespace memphis::kernels::cpu
