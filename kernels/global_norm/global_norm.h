// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// norm = sqrt(sum x^2) over a flat tensor.
//
// Operands    partial_P is scratch; x is cut into P runs, which decides the order of the sum.
// Accumulate  f64 within a run on the CPU, f32 per thread and then f64 on the GPU; the sums of runs
//             are added in f64.
// Order       deterministic, independent of the number of threads.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment.
// Cost        reads n elements; memory bound.
struct GlobalNorm {
  TensorView norm_1;     // out  dtype of x
  TensorView x_n;        // in   f32 | f64
  TensorView partial_P;  // scratch  f64
};
void global_norm(const GlobalNorm& op, Stream stream);

constexpr std::int64_t kGlobalNormPartials = 1056;  // eight blocks for each SM of an H100

// total[0] [+]= scale * sum of x, in f64 in the order of the elements' runs: for losses and
// statistics. The scale lies on the device: it differs from step to step, and the call may be
// recorded once.
struct SumAll {
  TensorView total_1;       // out  dtype of x
  TensorView x_n;           // in   f32 | f64
  TensorView scale_1 = {};  // in   dtype of x; absent: 1
  bool accumulate = false;  // total += instead of total =
};
void sum_all(const SumAll& op, Stream stream);

// global_norm.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void global_norm(const GlobalNorm& op, Stream stream);
void sum_all(const SumAll& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
