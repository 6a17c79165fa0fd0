// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"
#include "kernels/attention/attention.h"

namespace memphis::kernels {

// Heads of tokens, put in another order, in other buffers, or summed over parts that lie one behind
// the other, as where ranks that share a sequence out send keys and gradients to each other:
//   y[t] = sum over p < num_parts of x[p * U + source[t]]
// of the view's heads, with U = x's tokens / num_parts; source[t] = t where there is none.
//
// Operands    buffers contiguous, 16-byte aligned, on the stream's device; y's other heads are left
//             as they are. y and x must not overlap.
// Accumulate  one part is copied bit by bit. Several are summed in f32 (f64 for f64), in their order,
//             and rounded once.
// Order       deterministic.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; on the GPU an H that is no multiple
//             of 8. A source outside [0, U) is a ContractError on the CPU and the caller's duty on
//             the GPU.
// Cost        reads num_parts times the heads and writes them once; memory bound.
struct GatherHeads {
  HeadsView y_TCH;           // out  bf16 | f32 | f64
  HeadsView x_UCH;           // in   dtype of y, as many heads
  TensorView source_T = {};  // in   i32; absent: y has the U tokens of x, in their order
  std::int64_t num_parts = 1;
};
void gather_heads(const GatherHeads& op, Stream stream);

// gather_heads.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void gather_heads(const GatherHeads& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
