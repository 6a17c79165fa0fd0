// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/dims.h"

#include <algorithm>

namespace memphis {
namespace {

// 128 Mi logits: 256 MiB in bf16, and at V = 131072 still 1024 rows, which fill the head's
// products.
constexpr std::int64_t kMaxLogits = std::int64_t{1} << 27;
// Every chunk's rows then start 16-byte aligned, in any dtype.
constexpr std::int64_t kChunkMultiple = 8;

}  // namespace

Dims make_dims(const ModelConfig& model, std::int64_t num_sequences, std::int64_t sequence_length) {
  Dims dims;
  dims.B = num_sequences;
  dims.S = sequence_length;
  dims.T = num_sequences * sequence_length;
  dims.D = model.d_model;
  dims.N = model.num_heads;
  dims.G = model.num_kv_heads;
  dims.C = model.num_heads + 2 * model.num_kv_heads;
  dims.H = model.head_dim;
  dims.E = model.num_experts;
  dims.K = model.experts_per_token;
  dims.R = dims.T * dims.K;
  dims.F = model.ffn_dim;
  dims.dense_F = model.dense_ffn_dim;
  dims.V = model.vocab_size;
  dims.L = model.num_layers;
  dims.head_chunk = std::min(
      dims.T, std::max(kChunkMultiple, kMaxLogits / dims.V / kChunkMultiple * kChunkMultiple));
  return dims;
}

}  // namespace memphis
