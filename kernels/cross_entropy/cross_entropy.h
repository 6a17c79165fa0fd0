// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// Cross entropy of softmax(l), l = cap tanh(multiplier * logits / cap) (l = multiplier * logits
// without a cap), and its gradient, in one pass over each row:
//   loss[t] = logsumexp(l) - l[target];  dlogits = grad_scale (softmax(l) - onehot) dl/dlogits.
// A row whose target is negative counts nothing: loss 0, gradient 0.
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device. grad_scale
//             lies there too: it differs from step to step, and the call may be recorded once.
// Accumulate  f32 (f64 for f64); dlogits rounds once.
// In place    dlogits may be logits.
// Order       deterministic.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; a target >= V on the CPU. The GPU
//             makes that row's loss a NaN, and its gradient is of no use.
// Cost        reads T*V elements and writes as many; the CPU reads rows twice, the GPU what of them
//             does not fit in shared memory. Memory bound.
// Source      Grok-1 model.py (multiplier, before the loss), Grok-2 config (cap).
struct CrossEntropy {
  TensorView loss_T;             // out  accumulation dtype, nats
  TensorView dlogits_TV = {};    // out  dtype of logits; absent: only the loss
  TensorView logits_TV;          // in   bf16 | f32 | f64, the raw product with the head
  TensorView targets_T;          // in   i32
  TensorView grad_scale_1 = {};  // in  accumulation dtype, dLoss/d(loss of one row); with dlogits
  float multiplier = 1.0F;
  float cap = 0.0F;  // 0: no cap
};
void cross_entropy(const CrossEntropy& op, Stream stream);

// The same where ranks share the vocabulary out: logits are columns vocab_begin and on of the
// whole. Each rank sums its columns up, the ranks' sums are joined, and each rank has the gradient
// of its columns. Accumulation, order, asynchrony and errors are those of cross_entropy, but that a
// target past the whole vocabulary goes unseen: it is no rank's, and the loss is that row's lse.
// The caller checks targets.
//
// Of the columns of this rank: lse = logsumexp(l), -inf where all of them are masked, and target =
// l[target] where the target is one of them, else 0; 0 for a negative target.
//
// Cost        reads T*V elements; memory bound.
struct CrossEntropyShard {
  TensorView lse_T;      // out  accumulation dtype
  TensorView target_T;   // out  accumulation dtype
  TensorView logits_TV;  // in   bf16 | f32 | f64
  TensorView targets_T;  // in   i32, of the whole vocabulary
  float multiplier = 1.0F;
  float cap = 0.0F;
  std::int64_t vocab_begin = 0;
};
void cross_entropy_shard(const CrossEntropyShard& op, Stream stream);

// Of all columns, from those of P ranks, in their order: lse = logsumexp over P, target = the sum.
// What one rank alone has found is passed on to the bit.
//
// Cost        reads 2*P*T and writes 2*T elements; memory bound.
struct CrossEntropyJoin {
  TensorView lse_T;      // out  f32 | f64
  TensorView target_T;   // out  dtype of lse
  TensorView lse_PT;     // in   dtype of lse
  TensorView target_PT;  // in   dtype of lse
};
void cross_entropy_join(const CrossEntropyJoin& op, Stream stream);

// loss = lse - target, dlogits = grad_scale (exp(l - lse) - onehot) dl/dlogits; both 0 for a
// negative target, whose lse is not looked at. dlogits may be logits.
//
// Cost        reads and writes T*V elements; memory bound.
struct CrossEntropyGradient {
  TensorView loss_T;             // out  accumulation dtype, nats
  TensorView dlogits_TV = {};    // out  dtype of logits; absent: only the loss
  TensorView logits_TV;          // in   bf16 | f32 | f64
  TensorView targets_T;          // in   i32, of the whole vocabulary
  TensorView lse_T;              // in   accumulation dtype, of all columns
  TensorView target_T;           // in   accumulation dtype, of all columns
  TensorView grad_scale_1 = {};  // in  as in cross_entropy
  float multiplier = 1.0F;
  float cap = 0.0F;
  std::int64_t vocab_begin = 0;
};
void cross_entropy_gradient(const CrossEntropyGradient& op, Stream stream);

// cross_entropy.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void cross_entropy(const CrossEntropy& op, Stream stream);
void cross_entropy_shard(const CrossEntropyShard& op, Stream stream);
void cross_entropy_join(const CrossEntropyJoin& op, Stream stream);
void cross_entropy_gradient(const CrossEntropyGradient& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
