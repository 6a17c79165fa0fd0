// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/core/dtype.h"
#include "kernels/cpu/ahead.h"
#include "kernels/cpu/scratch.h"

namespace memphis::kernels::cpu {

enum class Transpose : std::uint8_t { no, yes };

// c = a b, or c += a b, row-major, a [m, k], b [k, n] after their transpositions, ld* the row
// strides of the matrices as stored. Sums are formed in Accumulator<In>; c (of type Out) is rounded
// once. gemm and gemm_packed ask for `ahead` meanwhile; it changes nothing.
template <class In, class Out>
struct Gemm {
  Transpose transpose_a = Transpose::no;
  Transpose transpose_b = Transpose::no;
  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
  const In* a;
  std::int64_t lda;
  const In* b;
  std::int64_t ldb;
  Out* c;
  std::int64_t ldc;
  bool accumulate = false;
  Ahead ahead = {};
};

// On the calling thread, with gemm_scratch_bytes(op) of scratch; that of a smaller m, n or k, with
// the same transpositions and lda, is no more.
template <class In, class Out>
std::int64_t gemm_scratch_bytes(const Gemm<In, Out>& op);
template <class In, class Out>
void gemm(const Gemm<In, Out>& op, Scratch scratch);

// For a b that several products share: its copy in the layout of the kernel, made once. gemm_packed
// then reads `packed` in the place of op.b, and gives the bits that gemm would.
template <class In>
std::int64_t packed_count(std::int64_t k, std::int64_t n);
template <class In, class Out>
void pack(const Gemm<In, Out>& op, Accumulator<In>* packed);
template <class In, class Out>
void gemm_packed(const Gemm<In, Out>& op, const Accumulator<In>* packed, Scratch scratch);

// The same product cut into tiles of c by shape alone and spread over the OpenMP threads: the bits
// do not depend on the number of threads.
template <class In, class Out>
void parallel_gemm(const Gemm<In, Out>& op);

// That cut, for a caller that spreads the tiles of several products at once: how many tiles there
// are, and tile `tile` of them on this thread, with gemm_tile_scratch_bytes of scratch, which are
// the same for all shapes.
template <class In, class Out>
std::int64_t num_gemm_tiles(const Gemm<In, Out>& op);
template <class In, class Out>
std::int64_t gemm_tile_scratch_bytes();
template <class In, class Out>
void gemm_tile(const Gemm<In, Out>& op, std::int64_t tile, Scratch scratch);

}  // namespace memphis::kernels::cpu
