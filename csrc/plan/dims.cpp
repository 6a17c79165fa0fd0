// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/dims.h"

#include <algorithm>
#include <cmath>

#include "csrc/core/round.h"

namespace memphis {
namespace {

// 128 Mi logits: 256 MiB in bf16, 1024 rows at V = 131072.
constexpr std::int64_t kMaxLogits = std::int64_t{1} << 27;
// Every chunk's rows then start 16-byte aligned, in any dtype.
constexpr std::int64_t kChunkMultiple = 8;

std::int64_t received_rows(const Dims& d, const Share& share) {
  // A token goes to K different experts at most, and with each to this rank at most once.
  const std::int64_t senders = share.expert.count * share.expert_tensor.count;
  const std::int64_t most = senders * d.routed_T * std::min(d.K, d.local_E);
  if (share.expert_buffer == 0) {
    return most;
  }
  return std::min(
      most, static_cast<std::int64_t>(std::ceil(d.equal_share_of_rows() * share.expert_buffer)));
}

}  // namespace

std::int64_t Dims::expert_of(std::int64_t index) const {
  return index / local_E / expert_pieces * local_E + index % local_E;
}

std::int64_t Dims::pad_chunk(std::int64_t tokens) const {
  return round_up(tokens, kChunkMultiple);
}

Dims::AttentionCall Dims::attention_call() const {
  AttentionCall call{.S = S, .keys_S = S, .N = local_N, .G = local_G};
  if (!exchange_keys || key_exchange == ContextExchange::ring) {
    return call;
  }
  call.keys_S = whole_S;
  if (key_exchange == ContextExchange::all_to_all) {
    const std::int64_t ranks = context().count;
    call.S = whole_S;
    call.N /= ranks;
    call.G /= ranks;
  }
  return call;
}

std::int64_t Dims::num_chunks(const TensorChunks& chunks) const {
  return chunks.overlap() ? (B + chunks.sequences - 1) / chunks.sequences * chunks.cuts : 1;
}

TokenChunk Dims::chunk_of(const TensorChunks& chunks, std::int64_t index) const {
  const std::int64_t ranks = T / residual_T;  // that have a piece each
  const std::int64_t piece = residual_T / B;  // of a sequence
  const std::int64_t most = chunks.overlap() ? chunks.sequences : B;
  const std::int64_t first = index / chunks.cuts * most;
  const std::int64_t rows = piece / chunks.cuts;
  const std::int64_t begin = index % chunks.cuts * rows;  // within each piece
  TokenChunk chunk;
  chunk.num_sequences = std::min(most, B - first);
  chunk.residual = {.begin = first * piece + begin, .count = chunk.num_sequences * rows};
  chunk.whole = {.begin = ranks * chunk.residual.begin, .count = ranks * chunk.residual.count};
  chunk.tokens = chunk.whole;
  if (chunks.cuts > 1) {
    chunk.num_runs = ranks;
    chunk.step = piece;
    chunk.tokens = {.begin = first * S + begin, .count = (ranks - 1) * piece + rows};
  }
  return chunk;
}

KvShare kv_share(const ModelConfig& model, const Share& share) {
  const Piece& tensor = share.tensor;
  if (model.num_kv_heads % tensor.count == 0) {
    return {.heads = tensor.of(model.num_kv_heads), .sharers = {}};
  }
  const std::int64_t sharers = tensor.count / model.num_kv_heads;
  return {.heads = {.begin = tensor.index / sharers, .count = 1},
          .sharers = {.index = tensor.index % sharers, .count = sharers}};
}

RankGroup kv_sharer_ranks(const ModelConfig& model, const Mesh& mesh, std::int64_t rank) {
  const RankGroup tensor = mesh.group(Axis::tensor, rank);
  const Piece piece{.index = mesh.index(Axis::tensor, rank), .count = tensor.count};
  const Piece sharers = kv_share(model, {.tensor = piece}).sharers;
  return {.first = rank - sharers.index * tensor.stride,
          .stride = tensor.stride,
          .count = sharers.count};
}

Dims make_dims(const ModelConfig& model,
               std::int64_t num_sequences,
               std::int64_t sequence_length,
               const Share& share) {
  const Piece& tensor = share.tensor;
  Dims dims;
  dims.B = num_sequences;
  dims.S = sequence_length / share.context.count;
  dims.whole_S = sequence_length;
  dims.T = num_sequences * dims.S;
  dims.U = num_sequences * sequence_length;
  dims.own_U = {.begin = share.context.index * dims.T, .count = dims.T};
  dims.piece_S = tensor.of(dims.S);
  dims.routed_T = dims.B * dims.piece_S.count;
  dims.split_sequences = share.sequence_parallel && tensor.count > 1;
  dims.tensor_parallel = tensor.count > 1;
  dims.expert_ranks = share.expert.count * share.expert_tensor.count;
  dims.exchange_keys = share.context.count > 1;
  dims.exchange_rows = dims.expert_ranks > 1;
  dims.residual_T = dims.split_sequences ? dims.routed_T : dims.T;
  dims.D = model.d_model;
  dims.local_N = tensor.of(model.num_heads).count;
  dims.local_G = kv_share(model, share).heads.count;
  dims.local_C = dims.local_N + 2 * dims.local_G;
  dims.H = model.head_dim;
  dims.E = model.num_experts;
  dims.local_E = share.expert.of(model.num_experts).count;
  dims.K = model.experts_per_token;
  dims.expert_pieces = share.expert_tensor.count;
  dims.sent_R = dims.routed_T * dims.K * dims.expert_pieces;
  dims.local_R = dims.exchange_rows ? received_rows(dims, share) : dims.sent_R;
  dims.local_F = share.expert_tensor.of(model.ffn_dim).count;
  dims.local_dense_F = tensor.of(model.dense_ffn_dim).count;
  dims.V = model.vocab_size;
  dims.local_V = tensor.of(model.vocab_size);
  dims.L = model.num_layers;
  dims.head_chunk = std::min(dims.T,
                             std::max(kChunkMultiple,
                                      kMaxLogits / std::max<std::int64_t>(dims.local_V.count, 1) /
                                          kChunkMultiple * kChunkMultiple));
  return dims;
}

}  // namespace memphis
