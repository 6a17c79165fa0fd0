// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/attention_shape.h"
#include "kernels/attention/heads_check.h"
#include "kernels/check.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

void check_score(const OpCheck& check, const AttentionScore& score) {
  check.condition(
      score.scale > 0 && score.cap >= 0 && std::isfinite(score.scale) && std::isfinite(score.cap),
      [&] {
        return "score.scale " + std::to_string(score.scale) + " and score.cap " +
               std::to_string(score.cap) +
               " are not usable (the largest product is to be the largest logit, and a cap bounds "
               "|logit|); use a finite scale above 0 and a cap of 0 or more";
      });
  check.condition(score.temperature_len == 0 || score.temperature_len >= 2, [&] {
    return "score.temperature_len is " + std::to_string(score.temperature_len) +
           " (its logarithm divides); use 0 for none, or 2 or more";
  });
}

// The operands that both directions have.
template <class Operands>
void check_operands(const OpCheck& check, const Operands& op, Stream stream) {
  check.num_dims("lse_BNS", op.lse_BNS, 3);
  check.num_dims("q_TNH", op.q_TNH.buffer_TCH, 3);
  check.num_dims("k_UGH", op.k_UGH.buffer_TCH, 3);
  const DType dtype = op.q_TNH.dtype();
  const std::int64_t H = op.q_TNH.width();
  const std::int64_t B = op.lse_BNS.dim(0);
  const std::int64_t N = op.lse_BNS.dim(1);
  const std::int64_t T = B * op.lse_BNS.dim(2);
  const std::int64_t U = op.k_UGH.num_tokens();
  const std::int64_t G = op.k_UGH.num_heads;
  check.float_dtype("q_TNH", dtype);
  check.condition(N >= 1 && G >= 1 && N % G == 0, [&] {
    return std::to_string(G) + " key/value heads for " + std::to_string(N) +
           " query heads (a key/value head serves as many query heads as any other)";
  });
  check.condition(T * N <= std::numeric_limits<std::uint32_t>::max(), [&] {
    return std::to_string(T) + " tokens of " + std::to_string(N) +
           " heads (their rows are numbered in 32 bits); attend to fewer at a time";
  });
  check.condition(B == 0 ? U == 0 : U % B == 0, [&] {
    return "k_UGH has " + std::to_string(U) + " tokens for " + std::to_string(B) +
           " sequences (each has as many keys)";
  });
  check.condition(stream.device == Device::cpu || (H % 8 == 0 && H >= 8 && H <= 128), [&] {
    return "a head is " + std::to_string(H) +
           " wide (on cuda a multiple of 8 up to 128); "
           "change model.head_dim";
  });
  check.tensor("out_TNH", op.out_TNH, {T, N, H}, dtype);
  check.tensor("lse_BNS", op.lse_BNS, {B, N, op.lse_BNS.dim(2)}, accumulation_dtype(dtype));
  check_heads(check, "q_TNH", op.q_TNH, T, N, H, dtype);
  check_heads(check, "k_UGH", op.k_UGH, U, G, H, dtype);
  check_heads(check, "v_UGH", op.v_UGH, U, G, H, dtype);
  check.tensor("position_T", op.position_T, {T}, DType::i32);
  check.optional_tensor("place_T", op.place_T, {T}, DType::i32);
  check.optional_tensor("key_place_U", op.key_place_U, {U}, DType::i32);
  check.optional_tensor("key_valid_U", op.key_valid_U, {U}, DType::u8);
  check_score(check, op.score);
}

// Of one head's queries and keys, causal: half of a square where both are the same. Documents make it
// less, by what only their positions tell.
template <class Op>
void count_products(const OpCheck& check, const Op& op, std::int64_t count) {
  const AttentionShape s = attention_shape(op);
  const std::int64_t pairs = s.num_keys == s.S ? s.S * (s.S + 1) / 2 : s.S * s.num_keys;
  check.product(count * s.B * s.N, pairs, s.H);
}

}  // namespace

void attention_forward(const AttentionForward& op, Stream stream) {
  const OpCheck check("attention_forward", stream);
  check_operands(check, op, stream);
  count_products(check, op, 2);
  if (stream.device == Device::cuda) {
    return cuda::attention_forward(op, stream);
  }
  visit_float(op.q_TNH.dtype(), [&]<class T>() { cpu::attention_forward<T>(op); });
}

void attention_backward(const AttentionBackward& op, Stream stream) {
  const OpCheck check("attention_backward", stream);
  check_operands(check, op, stream);
  const DType dtype = op.q_TNH.dtype();
  const std::int64_t N = op.q_TNH.num_heads;
  const std::int64_t G = op.k_UGH.num_heads;
  const std::int64_t T = op.q_TNH.num_tokens();
  const std::int64_t U = op.k_UGH.num_tokens();
  const std::int64_t H = op.q_TNH.width();
  const TensorView& lse = op.lse_BNS;
  check_heads(check, "dq_TNH", op.dq_TNH, T, N, H, dtype);
  check_heads(check, "dk_UGH", op.dk_UGH, U, G, H, dtype);
  check_heads(check, "dv_UGH", op.dv_UGH, U, G, H, dtype);
  check.tensor("dout_TNH", op.dout_TNH, {T, N, H}, dtype);
  check.tensor("delta_BNS", op.delta_BNS, {lse.dim(0), lse.dim(1), lse.dim(2)}, lse.dtype);
  check.condition(!op.workspace_W.present() ||
                      (op.workspace_W.dtype == DType::u8 &&
                       reinterpret_cast<std::uintptr_t>(op.workspace_W.data) % 16 == 0),
                  [&] {
                    return "workspace_W is not 16-byte aligned, or not of u8 (it is for one kernel "
                           "to divide); allocate it so";
                  });
  check.condition(op.sequence_keys == 0 || op.sequence_keys * lse.dim(0) >= U, [&] {
    return "sequence_keys is " + std::to_string(op.sequence_keys) +
           ", less than the keys of this call (it counts those of all parts); use 0 where there "
           "is one part";
  });
  count_products(check, op, 5);
  if (stream.device == Device::cuda) {
    return cuda::attention_backward(op, stream);
  }
  visit_float(dtype, [&]<class T>() { cpu::attention_backward<T>(op); });
}

std::size_t attention_backward_workspace_bytes(const AttentionBackward& op, Device device) {
  return device == Device::cuda ? cuda::attention_backward_workspace_bytes(op) : 0;
}

}  // namespace memphis::kernels
