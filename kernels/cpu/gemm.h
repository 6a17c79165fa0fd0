// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/core/dtype.h"

namespace memphis::kernels::cpu {

enum class Transpose : std::uint8_t { no, yes };

// c = alpha a b + beta c on one thread, row-major, a [m, k], b [k, n] after their transpositions,
// ld* the row strides of the matrices as stored. With beta 0 the old c is not read. float and
// double go to OpenBLAS; for bf16 the operands are widened to f32 block by block and c (of type
// Out) is rounded once. Instantiated for <double, double>, <float, float>, <bf16, bf16> and <bf16,
// float>.
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
  Accumulator<In> alpha = 1;
  Accumulator<In> beta = 0;
};

template <class In, class Out>
void gemm(const Gemm<In, Out>& op);

// The same product cut into tiles of c by shape alone and spread over the OpenMP threads: the bits
// do not depend on the number of threads.
template <class In, class Out>
void parallel_gemm(const Gemm<In, Out>& op);

// That cut, for a caller that spreads the tiles of several products at once: how many tiles there
// are, and tile `tile` of them on this thread.
template <class In, class Out>
std::int64_t num_gemm_tiles(const Gemm<In, Out>& op);
template <class In, class Out>
void gemm_tile(const Gemm<In, Out>& op, std::int64_t tile);

// OpenBLAS's own threading is off in this process (its split depends on the number of threads);
// this runs its sgemm on `num_threads` for a measurement: c = a b of n x n matrices. Returns
// FLOP/s, the best of `repeats`.
double measure_openblas_sgemm(std::int64_t n, int num_threads, int repeats);

}  // namespace memphis::kernels::cpu
