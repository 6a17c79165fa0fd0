// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"
#include "kernels/weight_gradient.h"

namespace memphis::kernels {

// y[t] = weight[tokens[t]] * multiplier.
//
// Where ranks share the vocabulary out, weight holds rows vocab_begin and on of it, and a token of
// another rank's gives zeros: the ranks' y add up to that of the whole.
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device.
// Accumulate  the product in f32 (f64 for f64); one rounding, at the store.
// Order       deterministic.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment, and where the whole vocabulary
//             does not have the weight's rows. A token outside of the whole is a ContractError on
//             the CPU; the GPU takes it for another rank's: the caller checks tokens on the host.
// Cost        reads and writes T*D elements; memory bound.
// Source      Grok-1 model.py, InOutEmbed and the embedding multiplier.
struct EmbeddingForward {
  TensorView y_TD;       // out  bf16 | f32 | f64
  TensorView weight_VD;  // in   dtype of y
  TensorView tokens_T;   // in   i32, each in [0, vocab_size)
  float multiplier = 1.0F;
  std::int64_t vocab_begin = 0;
  std::int64_t vocab_size = 0;  // of the whole vocabulary; 0: weight holds all of it
};
void embedding_forward(const EmbeddingForward& op, Stream stream);

// dweight[v] [+]= multiplier * sum over t with tokens[t] == v of dy[t], in the order of t; tokens of
// other ranks are passed over. The sum of a row that no token has is zero.
//
// Accumulate  f32 (f64 for f64).
// Order       deterministic: the positions of one token are summed first to last.
// Cost        reads T*D elements, and reads and writes a row of dweight for each distinct token;
//             a GPU compares T*T tokens besides. T < 2^31.
struct EmbeddingBackward {
  TensorView dweight_VD;  // in/out  accumulation dtype
  TensorView dy_TD;       // in   bf16 | f32 | f64
  TensorView tokens_T;    // in   i32
  TensorView order_T;     // scratch  i32; on a GPU the positions in order of their tokens
  float multiplier = 1.0F;
  std::int64_t vocab_begin = 0;
  std::int64_t vocab_size = 0;  // of the whole vocabulary; 0: dweight holds all of it
  WeightGradient weight_gradient = WeightGradient::add;
};
void embedding_backward(const EmbeddingBackward& op, Stream stream);

// embedding.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void embedding_forward(const EmbeddingForward& op, Stream stream);
void embedding_backward(const EmbeddingBackward& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
