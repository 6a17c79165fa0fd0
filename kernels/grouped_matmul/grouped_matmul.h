// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"
#include "kernels/weight_gradient.h"

namespace memphis::kernels {

// One product an expert: rows offsets[e] .. offsets[e + 1] of y = those rows of x times
// weight[e]^T. The letters N and K are this op's own: output and input width.
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device. offsets lies
//             on the device: counts never travel to the host. Experts may be empty, counts are
//             arbitrary. offsets[0] = 0, offsets[E] = R.
// Accumulate  f32 (f64 for f64), no TF32; one rounding, at the store.
// In place    no.
// Order       deterministic. On the CPU the bits do not depend on the number of threads.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; on the GPU in bf16 N and K are
//             multiples of 8.
// Cost        2*R*N*K FLOP.
// Source      Gale et al. 2022, arXiv:2211.15841.
struct GroupedMatmulForward {
  TensorView y_RN;        // out  bf16 | f32 | f64
  TensorView x_RK;        // in   dtype of y
  TensorView weight_ENK;  // in   dtype of y
  TensorView offsets_E1;  // in   i32, [E + 1]
};
void grouped_matmul_forward(const GroupedMatmulForward& op, Stream stream);

// Per expert: dx = dy weight[e];  dweight[e] [+]= dy^T x. Either output may be absent. The sum over
// an empty expert's rows is zero: its dweight is left as it is, or becomes zero.
struct GroupedMatmulBackward {
  TensorView dx_RK = {};        // out  bf16 | f32 | f64; absent: not computed
  TensorView dweight_ENK = {};  // in/out  accumulation dtype; absent: not computed
  TensorView dy_RN;             // in   dtype of x
  TensorView x_RK = {};         // in   needed for dweight
  TensorView weight_ENK = {};   // in   needed for dx
  TensorView offsets_E1;        // in   i32
  WeightGradient weight_gradient = WeightGradient::add;
};
void grouped_matmul_backward(const GroupedMatmulBackward& op, Stream stream);

// grouped_matmul.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void grouped_matmul_forward(const GroupedMatmulForward& op, Stream stream);
void grouped_matmul_backward(const GroupedMatmulBackward& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
