// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// What the scores go through: logit = tau(p) * cap * tanh(scale * q.k / cap), then the mask, then
// the softmax over keys.
struct AttentionScore {
  float scale = 1.0F;  // multiplies q.k, before the cap
  float cap = 0.0F;    // 0: no cap
  // 0: tau = 1; else tau(p) = log2(p) / log2(len) for p > len, 1 below
  std::int64_t temperature_len = 0;
};

// Causal grouped-query attention over the T = B * S tokens of B sequences, with document
// boundaries: query t of a sequence attends to keys s >= 0 with t - position[t] <= s <= t, where
// position[t] counts from the start of t's document, and key_valid[s] != 0. A query with no such
// key takes the mean of v over all S positions of its sequence (as the softmax of equal logits does
// in Grok-1's model.py). p in tau(p) is position[t]. Query head n reads key/value head n / (N / G).
//
// Operands    qkv holds per token N query heads, G key heads, G value heads (C = N + 2G), after the
//             rotary embedding. All contiguous, 16-byte aligned, on the stream's device.
// Accumulate  f32 (f64 for f64): scores, softmax and sums. On the GPU in bf16 the probabilities are
//             rounded to bf16 before they multiply v.
// Order       deterministic: no atomics.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; N % G != 0; a negative cap, a
//             temperature_len of 1; on the GPU an H that is above 128 or no multiple of 8.
// Cost        2*S*N*H FLOP a token and forward (half of the square); never S x S in memory.
// Source      Dao et al. 2022, arXiv:2205.14135 and 2023, arXiv:2307.08691 (tiling, recomputation);
//             Grok-1 model.py, MultiHeadAttention (scale, cap, mask); SGLang (temperature).
struct AttentionForward {
  TensorView out_TNH;           // out  bf16 | f32 | f64
  TensorView lse_BNS;           // out  accumulation dtype, natural log of the sum of exp(logit); a
                                //      query with no key has -inf
  TensorView qkv_TCH;           // in   dtype of out
  TensorView position_T;        // in   i32
  TensorView key_valid_T = {};  // in   u8; absent: every key is valid
  AttentionScore score;
};
void attention_forward(const AttentionForward& op, Stream stream);

// dq, dk, dv from dout: probabilities are recomputed from lse. A query with no key gives dout / S
// to dv of every position of its sequence, and nothing to dq and dk.
//
// Accumulate  f32 (f64 for f64). On the GPU in bf16, probabilities and gradients of scores are
//             rounded to bf16 before they are multiplied, and what queries with no key give to dv
//             is added after its rounding and rounded again.
// Order       deterministic: no atomics.
// Cost        5*S*N*H FLOP a token counted (dq and dkv are separate passes: 7 are executed).
struct AttentionBackward {
  TensorView dqkv_TCH;          // out  bf16 | f32 | f64, every element is written
  TensorView dout_TNH;          // in   dtype of dqkv
  TensorView out_TNH;           // in   forward's
  TensorView lse_BNS;           // in   forward's
  TensorView qkv_TCH;           // in   forward's
  TensorView position_T;        // in   i32
  TensorView key_valid_T = {};  // in   u8
  TensorView delta_BNS;         // scratch  accumulation dtype: rows' sum of dout * out
  AttentionScore score;
};
void attention_backward(const AttentionBackward& op, Stream stream);

// attention.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void attention_forward(const AttentionForward& op, Stream stream);
void attention_backward(const AttentionBackward& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
