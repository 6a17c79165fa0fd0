// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// Flat maps over n elements: any dims, as long as operands agree.
//
// Operands    see the structs; all contiguous, 16-byte aligned, on the stream's device.
// Accumulate  f32 (f64 for f64); one rounding, at the store.
// In place    outputs may be inputs of the same dtype.
// Order       deterministic.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment.
// Cost        each element is read and written once; memory bound.

// y = scale * (a + b). Its backward is y = scale * da for both: `scale`.
struct Add {
  TensorView y;  // out  bf16 | f32 | f64
  TensorView a;  // in   dtype of y
  TensorView b;  // in   dtype of y
  float scale = 1.0F;
};
void add(const Add& op, Stream stream);

// y = scale * x.
struct Scale {
  TensorView y;  // out  bf16 | f32 | f64
  TensorView x;  // in   dtype of y
  float scale;
};
void scale(const Scale& op, Stream stream);

// y = cap tanh(scale * x / cap), or scale * x if cap is 0. x and y may differ in dtype: y is f32
// (f64 for f64) or x's. Source  Grok-1 model.py, attention logits; Grok-2 config, final logits.
struct SoftCapForward {
  TensorView y;  // out  dtype of x, or its accumulation dtype
  TensorView x;  // in   bf16 | f32 | f64
  float scale = 1.0F;
  float cap = 0.0F;
};
void soft_cap_forward(const SoftCapForward& op, Stream stream);

// dx = dy * scale * (1 - (y / cap)^2).
struct SoftCapBackward {
  TensorView dx;  // out  bf16 | f32 | f64
  TensorView dy;  // in   dtype of dx
  TensorView y;   // in   forward's, dtype of dx
  float scale = 1.0F;
  float cap = 0.0F;
};
void soft_cap_backward(const SoftCapBackward& op, Stream stream);

// y = x in another float dtype.
struct Convert {
  TensorView y;  // out  bf16 | f32 | f64
  TensorView x;  // in   bf16 | f32 | f64
};
void convert(const Convert& op, Stream stream);

// elementwise.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void add(const Add& op, Stream stream);
void scale(const Scale& op, Stream stream);
void soft_cap_forward(const SoftCapForward& op, Stream stream);
void soft_cap_backward(const SoftCapBackward& op, Stream stream);
void convert(const Convert& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
