// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// Attention over all keys from P calls of attention_forward() with the same queries, each of which
// had some of the keys: lse = log(sum over p of exp(lse_p)), out = sum over p of
// exp(lse_p - lse) * out_p. A query that sees no key in any part takes the mean of the parts'
// means, each as often as the part has keys, and an lse of -inf.
//
// Operands    contiguous, 16-byte aligned, on the stream's device. So is each part as an operand of
//             attention_forward(): B*N*S of the sums are whole 16 bytes where a part has another
//             behind it.
// Accumulate  f32 (f64 for f64), parts in their order; one rounding, at the store.
// Order       deterministic.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; on the GPU an H that is no
//             multiple of 8.
// Cost        reads P*T*N*H elements and writes T*N*H; memory bound.
// Source      Rabe and Staats 2021, arXiv:2112.05682; Liu et al. 2023, arXiv:2310.01889.
struct AttentionMerge {
  TensorView out_TNH;        // out  bf16 | f32 | f64
  TensorView lse_BNS;        // out  accumulation dtype
  TensorView part_out_PTNH;  // in   dtype of out, each part as attention_forward() wrote it
  TensorView part_lse_PBNS;  // in   accumulation dtype
  TensorView num_keys_P;     // in   i32, of a sequence in each part
};
void attention_merge(const AttentionMerge& op, Stream stream);

// attention_merge.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void attention_merge(const AttentionMerge& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
