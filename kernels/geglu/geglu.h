// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// y = gelu(gate) * up [* the row's expert gate],
// gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
// Row r of gate_up is the F gate values, then the F up values. The expert gate of row r is
// gates[source[r]]: multiplying it in before the down projection (which has no bias) is the same
// function as after it, and saves keeping the experts' outputs for backward.
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device.
// Accumulate  f32 (f64 for f64); one rounding, at the store.
// Order       deterministic.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; gates and source come together.
// Cost        reads 2*R*F, writes R*F elements; memory bound.
// Source      Shazeer 2020, arXiv:2002.05202; Grok-1 model.py, DenseBlock and MoELayer.
struct GegluForward {
  TensorView y_RF;           // out  bf16 | f32 | f64
  TensorView gate_up_R2F;    // in   dtype of y, [R, 2F]
  TensorView gates_TK = {};  // in   accumulation dtype; absent: no row factor
  TensorView source_R = {};  // in   i32, index into the T*K gates, a permutation
};
void geglu_forward(const GegluForward& op, Stream stream);

// With s the row's expert gate (1 if absent): dgate = s dy up gelu'(gate), dup = s dy gelu(gate),
// dgates[source[r]] = sum_f dy gelu(gate) up.
//
// In place    dgate_up may be gate_up.
struct GegluBackward {
  TensorView dgate_up_R2F;    // out  bf16 | f32 | f64
  TensorView dgates_TK = {};  // out  accumulation dtype; present exactly if gates is
  TensorView dy_RF;           // in   dtype of dgate_up
  TensorView gate_up_R2F;     // in   forward's
  TensorView gates_TK = {};   // in
  TensorView source_R = {};   // in
};
void geglu_backward(const GegluBackward& op, Stream stream);

// geglu.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void geglu_forward(const GegluForward& op, Stream stream);
void geglu_backward(const GegluBackward& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
