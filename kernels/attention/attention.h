// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// Heads [first_head, first_head + num_heads) of every token of a buffer [tokens, heads, H].
// Queries, keys and values lie in one buffer where one matrix product made them, or each in its
// own. A TensorView stands for all of its heads.
struct HeadsView {
  TensorView buffer_TCH;
  std::int64_t first_head = 0;
  std::int64_t num_heads = 0;

  HeadsView() = default;
  HeadsView(const TensorView& all_TCH)  // NOLINT(google-explicit-constructor): see above
      : buffer_TCH(all_TCH), num_heads(all_TCH.num_dims == 3 ? all_TCH.dim(1) : 0) {}
  HeadsView(const TensorView& all_TCH, std::int64_t first, std::int64_t count)
      : buffer_TCH(all_TCH), first_head(first), num_heads(count) {}

  DType dtype() const { return buffer_TCH.dtype; }
  std::int64_t num_tokens() const { return buffer_TCH.dim(0); }
  std::int64_t width() const { return buffer_TCH.dim(2); }
  // Elements from a head of one token to the same head of the next.
  std::int64_t token_stride() const { return buffer_TCH.dim(1) * width(); }
  // The first head of the first token.
  template <class T>
  T* as() const {
    return buffer_TCH.as<T>() + first_head * width();
  }
};

// What the scores go through: logit = tau(p) * cap * tanh(scale * q.k / cap), then the mask, then
// the softmax over keys.
struct AttentionScore {
  float scale = 1.0F;  // multiplies q.k, before the cap; above 0
  float cap = 0.0F;    // 0: no cap
  // 0: tau = 1; else tau(p) = log2(p) / log2(len) for p > len, 1 below
  std::int64_t temperature_len = 0;
};

// Causal grouped-query attention of the T = B * S tokens of B sequences to U tokens, U / B of each
// sequence. Query head n reads key/value head n / (N / G).
//
// Tokens of a sequence lie at places, which ascend from 0 on. position[t] counts from the start of
// query t's document. The query sees the keys whose places are in place[t] - position[t] to
// place[t], and that key_valid does not hide. Without places, query t and key t are the same token;
// with them, a call may have some of the keys alone, or others than its queries, as where a
// sequence is spread over ranks. Keys need no positions in documents: those of the queries say from
// which place to which their documents reach.
//
// A query that sees no key takes the mean of v over all keys of its sequence (as the softmax of
// equal logits does in Grok-1's model.py), and its lse is -inf.
//
// Parts: where each of several calls has some of the keys, and all of them have the same queries,
// attention_merge() makes the out and lse over all keys of the calls'. Backward, called once a part
// with the merged out and lse, then gives dk and dv of the part's keys, and dq's that add up to the
// whole one; sequence_keys tells it the number of keys of all parts.
//
// Operands    All contiguous but for what a HeadsView leaves out, 16-byte aligned, on the stream's
//             device; q and k after the rotary embedding.
// Accumulate  f32 (f64 for f64): scores, softmax and sums. On the GPU in bf16 the probabilities are
//             rounded to bf16 before they multiply v.
// Order       deterministic: no atomics.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; N % G != 0; a scale of 0 or less,
//             a negative cap, a temperature_len of 1; on the GPU an H that is above 128 or no
//             multiple of 8. Places that do not ascend are not noticed.
// Cost        2*S*N*H FLOP a token and forward (half of the square); never S x S in memory.
// Source      Dao et al. 2022, arXiv:2205.14135 and 2023, arXiv:2307.08691 (tiling, recomputation);
//             Grok-1 model.py, MultiHeadAttention (scale, cap, mask); SGLang (temperature).
struct AttentionForward {
  TensorView out_TNH;  // out  bf16 | f32 | f64
  TensorView
      lse_BNS;      // out  accumulation dtype, natural log of the sum of exp(logit); a query with
                    //      no key has -inf
  HeadsView q_TNH;  // in   dtype of out
  HeadsView k_UGH;  // in   dtype of out
  HeadsView v_UGH;  // in   dtype of out
  TensorView position_T;        // in   i32, of the queries, which p in tau(p) is
  TensorView place_T = {};      // in   i32; absent: token t of a sequence is at place t
  TensorView key_place_U = {};  // in   i32; absent: the same
  TensorView key_valid_U = {};  // in   u8, 0: is no key; absent: every key is valid
  AttentionScore score;
};
void attention_forward(const AttentionForward& op, Stream stream);

// dq, dk, dv from dout: probabilities are recomputed from lse. A query with no key gives
// dout / sequence_keys to dv of every position of its sequence, and nothing to dq and dk.
//
// Operands    dq, dk and dv may be heads of one buffer, of which they are all that is written.
// Accumulate  f32 (f64 for f64). On the GPU in bf16, probabilities and gradients of scores are
//             rounded to bf16 before they are multiplied, and what queries with no key give to dv
//             is added after its rounding and rounded again.
// Order       deterministic: no atomics.
// Cost        5*S*N*H FLOP a token counted (dq and dkv are separate passes: 7 are executed).
struct AttentionBackward {
  HeadsView dq_TNH;                // out  bf16 | f32 | f64, every element is written
  HeadsView dk_UGH;                // out  dtype of dq
  HeadsView dv_UGH;                // out  dtype of dq
  TensorView dout_TNH;             // in   dtype of dq
  TensorView out_TNH;              // in   forward's, or the merged one
  TensorView lse_BNS;              // in   forward's, or the merged one
  HeadsView q_TNH;                 // in   forward's, and so on
  HeadsView k_UGH;                 // in
  HeadsView v_UGH;                 // in
  TensorView position_T;           // in   i32
  TensorView place_T = {};         // in   i32
  TensorView key_place_U = {};     // in   i32
  TensorView key_valid_U = {};     // in   u8
  TensorView delta_BNS;            // scratch  accumulation dtype: rows' sum of dout * out
  TensorView workspace_W = {};     // scratch  u8; absent, or less than
                                   //          attention_backward_workspace_bytes: kernels that
                                   //          need none, and form two products twice
  std::int64_t sequence_keys = 0;  // of all parts, of a sequence; 0: this call has them all
  AttentionScore score;
};
void attention_backward(const AttentionBackward& op, Stream stream);
// Of workspace_W, for the fastest kernel that there is for these operands; 0 where it needs none.
std::size_t attention_backward_workspace_bytes(const AttentionBackward& op, Device device);

// attention.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void attention_forward(const AttentionForward& op, Stream stream);
void attention_backward(const AttentionBackward& op, Stream stream);
std::size_t attention_backward_workspace_bytes(const AttentionBackward& op);
}  // namespace cuda

}  // namespace memphis::kernels
