// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"
#include "kernels/weight_gradient.h"

namespace memphis::kernels {

// Top-K routing: logits z = x weight^T; capped zc = cap tanh(z / cap) (zc = z without a cap);
// P = softmax over all E of zc; the K largest of P are the experts, their P the gates, not
// renormalised. Equal probabilities go to the lower expert index.
//
// Auxiliary losses, of the tokens with valid != 0 (all if absent):
//   balance  per sequence, from its counts, probs_sum and valid: see RouterBalance. Those three are
//            sums over tokens: where a rank holds a piece of each sequence, the ranks' sums add up
//            to the sequence's.
//   z        logsumexp_e(z)^2 per token, of the logits before the cap.
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device.
//             K <= E, and on the GPU E <= 128.
// Accumulate  f32 (f64 for f64): x is widened, everything after is f32. On a GPU tensor cores sum
//             products of bf16 x with three bf16 of each weight and gradient, which have all of its
//             bits; one that is infinite gives NaN.
// Order       deterministic.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment.
// Cost        2*T*D*E FLOP, reads T*D elements; memory bound.
// Source      Grok-1 model.py, Router; Zoph et al. 2022, arXiv:2202.08906 (z).
struct RouterForward {
  TensorView logits_TE;     // out  accumulation dtype, z before the cap
  TensorView probs_TE;      // out  accumulation dtype, P
  TensorView gates_TK;      // out  accumulation dtype, descending
  TensorView experts_TK;    // out  i32
  TensorView counts_BE;     // out  i32, assignments of valid tokens, per sequence
  TensorView probs_sum_BE;  // out  accumulation dtype, sum of P over valid tokens, per sequence
  TensorView valid_B;       // out  i32, valid tokens of each sequence
  TensorView z_T;           // out  accumulation dtype, the z loss of each token; 0 where not valid
  TensorView x_TD;          // in   bf16 | f32 | f64
  TensorView weight_ED;     // in   accumulation dtype
  TensorView valid_T = {};  // in   u8
  float cap = 0.0F;         // 0: no cap
};
void router_forward(const RouterForward& op, Stream stream);

// The balance loss of a sequence with n valid tokens: E * sum_e f_e P_e, f_e = counts_e / (n K)
// without gradient, P_e = probs_sum_e / n. 1 when balanced; 0 where n = 0. The group is the whole
// sequence so that the value does not depend on how tokens are spread over micro-batches or ranks:
// the operands are forward's, summed over the ranks that hold pieces of the sequences.
//
// Operands    as above. E <= 128 on the GPU.
// Order       deterministic: over the experts.
// Cost        reads 2*B*E elements.
// Source      Fedus et al. 2021, arXiv:2101.03961.
struct RouterBalance {
  TensorView balance_B;            // out  f32 | f64
  TensorView counts_BE;            // in   i32
  TensorView probs_sum_BE;         // in   dtype of balance
  TensorView valid_B;              // in   i32
  std::int64_t experts_per_token;  // K
};
void router_balance(const RouterBalance& op, Stream stream);

// From dgates and the auxiliary losses to x and weight.
//   dP  = [dgates at the chosen experts] + w_b * E f_{b,e} / n_b
//   dzc = P (dP - sum_j P_j dP_j)
//   dz  = dzc (1 - (zc/cap)^2) + w_z * 2 lse(z) softmax(z)
//   dx [+]= dz weight;  dweight [+]= dz^T x
// w_b and w_z are the two of loss_scales_2. The terms with them are those of valid tokens alone; f
// and n are RouterBalance's, of the whole sequence.
//
// Operands    partial_PED is scratch; tokens are cut into P runs of ceil(T / P), which decides the
//             order of the sum. dlogits_TE is scratch that holds dz on return. loss_scales lie on
//             the device: they differ from step to step, and the call may be recorded once.
// Order       deterministic, independent of the number of threads.
struct RouterBackward {
  TensorView dx_TD;        // out  bf16 | f32 | f64
  TensorView dweight_ED;   // in/out  accumulation dtype
  TensorView dlogits_TE;   // scratch, out  accumulation dtype
  TensorView partial_PED;  // scratch  accumulation dtype
  TensorView dgates_TK;    // in   accumulation dtype
  TensorView logits_TE;    // in   forward's
  TensorView probs_TE;     // in   forward's
  TensorView experts_TK;   // in   forward's
  TensorView counts_BE;    // in   RouterBalance's
  TensorView valid_B;      // in   RouterBalance's
  TensorView x_TD;         // in   dtype of dx
  TensorView weight_ED;    // in
  // in  accumulation dtype: dLoss/d(balance loss of one sequence), dLoss/d(z loss of one token)
  TensorView loss_scales_2;
  TensorView valid_T = {};  // in   u8
  float cap = 0.0F;
  bool accumulate = false;  // dx += instead of dx =
  WeightGradient weight_gradient = WeightGradient::add;
};
void router_backward(const RouterBackward& op, Stream stream);

// With 24 blocks for the columns of a run at D = 6144, four blocks for each SM of an H100.
constexpr std::int64_t kRouterPartials = 22;

// router.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void router_forward(const RouterForward& op, Stream stream);
void router_balance(const RouterBalance& op, Stream stream);
void router_backward(const RouterBackward& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
