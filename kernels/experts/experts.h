// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"
#include "kernels/weight_gradient.h"

namespace memphis::kernels {

// The gated FFN of every expert on its routed rows, three ops in one:
//   gate_up = grouped_matmul(x, gate_up_weight);  hidden = geglu(gate_up) * the row's expert gate;
//   y = grouped_matmul(hidden, down_weight)
// The same bits as those three. The tensors between them are the largest of the model, and written
// and read from memory they cost time of their own: on the CPU a block of rows passes through all
// three while it is in the cache; on Hopper geglu is done at the end of the first product. On other
// GPUs the three follow one another.
//
// Operands    see the struct and the three ops' headers; all contiguous, 16-byte aligned, on the
//             stream's device; offsets ascend from 0 to R.
// Accumulate  as in the three ops; gate_up, hidden and y are each rounded once.
// Order       deterministic. On the CPU the bits do not depend on the number of threads.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment.
// Cost        6*R*D*F FLOP, a third of it for y.
struct ExpertsForward {
  TensorView y_RD = {};           // out  dtype of x; absent: not computed
  TensorView gate_up_R2F;         // out  dtype of x, kept for backward
  TensorView hidden_RF;           // out  dtype of x, kept for backward
  TensorView x_RD;                // in   bf16 | f32 | f64
  TensorView gate_up_weight_EFD;  // in   dtype of x, [E, 2F, D]
  TensorView down_weight_EDF;     // in   dtype of x
  TensorView offsets_E1;          // in   i32, [E + 1]
  TensorView gates_TK;            // in   accumulation dtype
  TensorView source_R;            // in   i32, index into the T*K gates, a permutation
};
void experts_forward(const ExpertsForward& op, Stream stream);

// Their derivative: dx and dgates are written, dweights are added to or written.
//
// Operands    gate_up is used up: its gradient takes its place. dhidden is scratch of the GPU; the
//             CPU keeps a block of it to itself. The gradients of both weights may be absent:
//             experts_backward_weights forms them later, to the same bits.
// Order       as forward; the same bits as the three ops' derivatives, but for dgates on Hopper,
//             whose sum over a row is made of those of 256 columns each.
// Cost        12*R*D*F FLOP, half of it for the weights.
struct ExpertsBackward {
  TensorView dx_RD;                     // out  bf16 | f32 | f64
  TensorView dgate_up_weight_EFD = {};  // in/out  accumulation dtype
  TensorView ddown_weight_EDF = {};     // in/out  accumulation dtype
  TensorView dgates_TK;                 // out  accumulation dtype
  TensorView gate_up_R2F;               // in/out  forward's; its gradient on return
  TensorView dhidden_RF;                // scratch  dtype of dx
  TensorView dy_RD;                     // in   dtype of dx
  TensorView x_RD;                      // in
  TensorView hidden_RF;                 // in   forward's
  TensorView gate_up_weight_EFD;        // in
  TensorView down_weight_EDF;           // in
  TensorView offsets_E1;                // in
  TensorView gates_TK;                  // in
  TensorView source_R;                  // in
  WeightGradient weight_gradient = WeightGradient::add;
};
void experts_backward(const ExpertsBackward& op, Stream stream);

// The gradients of the weights alone, which are added to or written.
//
// Operands    dgate_up is what experts_backward has left in the place of gate_up.
// Cost        6*R*D*F FLOP.
struct ExpertsBackwardWeights {
  TensorView dgate_up_weight_EFD;  // in/out  accumulation dtype
  TensorView ddown_weight_EDF;     // in/out  accumulation dtype
  TensorView dgate_up_R2F;         // in   bf16 | f32 | f64
  TensorView dy_RD;                // in   dtype of dgate_up, as are the next two
  TensorView x_RD;                 // in
  TensorView hidden_RF;            // in   forward's
  TensorView offsets_E1;           // in   i32
  WeightGradient weight_gradient = WeightGradient::add;
};
void experts_backward_weights(const ExpertsBackwardWeights& op, Stream stream);

// experts.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void experts_forward(const ExpertsForward& op, Stream stream);
void experts_backward(const ExpertsBackward& op, Stream stream);
void experts_backward_weights(const ExpertsBackwardWeights& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
