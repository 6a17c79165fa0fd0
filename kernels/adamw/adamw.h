// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// AdamW with decoupled weight decay, on a flat run of n parameters, and global-norm clipping:
//   g = grad * min(1, clip_norm / (norm + 1e-6))      (no clipping if clip_norm is 0)
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   u = m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps)
//   master -= learning_rate * (u + weight_decay * master)
//   param = master, rounded to its dtype.
// Where norm is not finite nothing is written: the gradient is of no use, and the step is left out.
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device. norm lies on
//             the device: the norm never travels to the host before the step. So do the rates,
//             which differ from step to step: the call may be recorded once. What is by value
//             stays as it is for a run.
// Accumulate  f32 (f64 for f64); bias corrections in f64 on the host.
// In place    param may be master if their dtypes agree.
// Order       deterministic.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment.
// Cost        reads 16, writes 14 bytes a bf16 parameter; memory bound.
// Source      Loshchilov and Hutter 2017, arXiv:1711.05101; Kingma and Ba 2014, arXiv:1412.6980.
struct AdamW {
  TensorView param_n;   // out     bf16 | f32 | f64
  TensorView master_n;  // in/out  accumulation dtype of param
  TensorView m_n;       // in/out  accumulation dtype
  TensorView v_n;       // in/out  accumulation dtype
  TensorView grad_n;    // in      accumulation dtype
  TensorView norm_1;    // in      accumulation dtype, of the whole gradient
  TensorView rates_3;   // in      accumulation dtype, what adamw_rates gives for the step
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  double clip_norm;  // 0: no clipping
};
void adamw(const AdamW& op, Stream stream);

// The factors of one step: learning_rate, 1 / (1 - beta1^step), 1 / (1 - beta2^step). In f64, to be
// rounded once: 1 - beta2^step loses its digits in f32 in the first steps.
//
// Errors      ContractError for step < 1.
std::array<double, 3> adamw_rates(double learning_rate,
                                  double beta1,
                                  double beta2,
                                  std::int64_t step);

// adamw.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void adamw(const AdamW& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
