// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// cos and sin of p * theta^(-2j/H) for every position p < S and j < H/2, interleaved: element
// [p, 2j] is the cosine, [p, 2j + 1] the sine. Computed in f64 and rounded once, on the host, then
// copied to the table's device.
//
// Errors      ContractError if H is odd.
struct RopeTable {
  TensorView table_SH;  // out  f32 (f64 for f64 models)
  double theta = 10000.0;
};
void rope_table(const RopeTable& op, Stream stream);

// Rotary position embedding, half-split (NeoX) form, in place on the first `num_rotated_heads` of C
// heads (q and k lie before v): with x = [x1 | x2] the halves of a head,
//   x1' = x1 cos - x2 sin,  x2' = x2 cos + x1 sin,  angle position * theta^(-2j/H).
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device; H is even.
// Accumulate  f32 (f64 for f64); one rounding, at the store.
// In place    always.
// Order       deterministic.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment.
// Cost        reads and writes T * num_rotated_heads * H elements; memory bound.
// Source      Su et al. 2021, arXiv:2104.09864; Grok-1 model.py, RotaryEmbedding.
struct RopeForward {
  TensorView x_TCH;       // in/out  bf16 | f32 | f64
  TensorView table_SH;    // in   f32 | f64: accumulation dtype of x
  TensorView position_T;  // in   i32, each in [0, S)
  std::int64_t num_rotated_heads;
};
void rope_forward(const RopeForward& op, Stream stream);

// The transposed (inverse) rotation, in place.
struct RopeBackward {
  TensorView dx_TCH;      // in/out  bf16 | f32 | f64
  TensorView table_SH;    // in
  TensorView position_T;  // in
  std::int64_t num_rotated_heads;
};
void rope_backward(const RopeBackward& op, Stream stream);

// rope.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void rope_forward(const RopeForward& op, Stream stream);
void rope_backward(const RopeBackward& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
