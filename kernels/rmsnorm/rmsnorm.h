// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"
#include "kernels/weight_gradient.h"

namespace memphis::kernels {

// RMSNorm: y = x / rms(x) * weight [+ residual], row by row, rms(x) = sqrt(mean(x^2) + eps).
//
// `next` is a norm of y in the same pass: what follows a branch is its post norm, the residual, and
// the pre norm of the next branch. Its bits are those of a call of its own.
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device.
// Accumulate  f32 (f64 for f64) for the row sum and what follows it; one rounding, at the store.
// In place    y may be x or residual.
// Order       deterministic: same inputs, same bits, on one device type.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; Error from the device.
// Cost        reads T*D (twice that with a residual) + D, writes T*D + T elements, another T*D + T
//             with a next norm; memory bound.
// Source      Zhang and Sennrich 2019, arXiv:1910.07467; Grok-1 model.py, RMSNorm.
struct NextNormForward {
  TensorView y_TD;      // out  dtype of y, not y
  TensorView rrms_T;    // out  accumulation dtype
  TensorView weight_D;  // in   accumulation dtype
};
struct RmsNormForward {
  TensorView y_TD;              // out  bf16 | f32 | f64
  TensorView rrms_T;            // out  accumulation dtype, 1/rms(x), kept for backward
  TensorView x_TD;              // in   dtype of y
  TensorView weight_D;          // in   accumulation dtype
  TensorView residual_TD = {};  // in   dtype of y, added after the norm; absent: nothing is added
  float eps = 1e-5F;            // units of x^2, of both norms
  NextNormForward next = {};    // absent: y is not normed
};
void rmsnorm_forward(const RmsNormForward& op, Stream stream);

// dx [+]= r (g dy) - x r^3 mean(x g dy), dweight [+]= sum_t dy x r, with r = rrms and g = weight.
//
// `next` is forward's: its dx is added to dy, or takes its place where y goes nowhere else, and is
// stored before all else. Its bits are those of a call of its own.
//
// Operands    partial_PD is scratch; rows are cut into P runs of ceil(T / P), so its first dim
//             decides the order of the sum. Any P >= 1; see kRmsNormPartials.
// Accumulate  f32 (f64 for f64); dx rounds once, after the addition if `accumulate`.
// In place    dx may be dy, but not with a next norm.
// Order       deterministic, independent of the number of threads.
// Cost        reads 2*T*D, writes T*D (reads one more T*D if `accumulate`), with a next norm reads
//             two and writes one T*D more, and reads one less if that does not accumulate; memory
//             bound.
struct NextNormBackward {
  TensorView dweight_D;    // in/out  accumulation dtype
  TensorView dy_TD;        // in   dtype of dx, of the next norm's y
  TensorView x_TD;         // in   dtype of dx, forward's y
  TensorView weight_D;     // in   accumulation dtype
  TensorView rrms_T;       // in   accumulation dtype, forward's
  TensorView partial_PD;   // scratch  as the other
  bool accumulate = true;  // dy += its dx instead of dy = its dx
};
struct RmsNormBackward {
  TensorView dx_TD;         // out  bf16 | f32 | f64
  TensorView dweight_D;     // in/out  accumulation dtype
  TensorView dy_TD;         // in   dtype of dx; with a next norm in/out, or out
  TensorView x_TD;          // in   dtype of dx, forward's
  TensorView weight_D;      // in   accumulation dtype
  TensorView rrms_T;        // in   accumulation dtype, forward's
  TensorView partial_PD;    // scratch  accumulation dtype
  bool accumulate = false;  // dx += instead of dx =
  WeightGradient weight_gradient = WeightGradient::add;
  NextNormBackward next = {};  // absent: dy is all of y's gradient
};
void rmsnorm_backward(const RmsNormBackward& op, Stream stream);

// Two blocks for each of an H100's 132 SMs, side by side or, of wide rows, one after the other; and
// far more than a CPU has threads.
constexpr std::int64_t kRmsNormPartials = 264;

// rmsnorm.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void rmsnorm_forward(const RmsNormForward& op, Stream stream);
void rmsnorm_backward(const RmsNormBackward& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
