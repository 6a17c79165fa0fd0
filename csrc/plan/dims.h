// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/config/config.h"
#include "csrc/plan/share.h"

namespace memphis {

// Tokens of a micro-batch that tensor ranks gather, or sum their terms of, in one call.
struct TokenChunk {
  std::int64_t num_sequences = 0;
  Range residual;  // their rows of the residual stream
  Range whole;     // the rows of all ranks, where chunk lies behind chunk
  // Where tokens are in their order: `num_runs` runs of equally many rows, each `step` rows behind the
  // one before, within these. As many as ranks where the chunk is a part of one sequence; else one.
  Range tokens;
  std::int64_t num_runs = 1;
  std::int64_t step = 0;

  std::int64_t rows_of_run() const { return whole.count / num_runs; }
};

// Into which chunks the tokens are cut so that one is on its way beside the product of another
// (csrc/plan/tensor_chunks.h).
struct TensorChunks {
  // With eight an eighth of an exchange is seen: what more of them hide is less than their starts and
  // ends take.
  static constexpr std::int64_t kMost = 8;

  std::int64_t sequences = 0;  // of a chunk; 0: all are one, and nothing travels beside a product
  std::int64_t cuts = 1;       // of a sequence, where a chunk has one

  bool overlap() const { return sequences > 0; }
  // The same without parts of a sequence, so that chunks lie in the order of tokens.
  TensorChunks of_sequences() const { return {.sequences = sequences}; }
  bool operator==(const TensorChunks&) const = default;
};

// The sizes of tensors, by the letters of csrc/core/tensor.h. A letter alone is the size in the
// model, or in the micro-batch that ranks along `tensor` share; with `local_` before it, what this
// rank has of it (csrc/plan/share.h). A tensor's name says its logical dims, and its spec in the
// plan which of the sizes of a letter it has: tokens are T, residual_T or routed_T, experts E or
// local_E, rows sent_R or local_R.
struct Dims {
  std::int64_t B = 0;  // sequences of a micro-batch
  std::int64_t S = 0;  // tokens of a sequence: those of them that this rank has along `context`
  std::int64_t whole_S = 0;     // all of them, which are the keys of its queries
  std::int64_t T = 0;           // tokens of a micro-batch: what attention and the head see
  std::int64_t U = 0;           // keys of a micro-batch: B * whole_S
  Range own_U;                  // those of this rank's tokens, where they are numbered by rank
  std::int64_t residual_T = 0;  // tokens of the residual stream and its norms
  std::int64_t routed_T = 0;    // tokens whose experts this rank chooses
  Range piece_S;                // their positions within each sequence
  std::int64_t D = 0;
  std::int64_t local_N = 0;
  std::int64_t local_G = 0;
  std::int64_t local_C = 0;  // local_N + 2 local_G
  std::int64_t H = 0;
  std::int64_t E = 0;
  std::int64_t local_E = 0;  // experts that this rank holds, each whole or a piece of its width
  std::int64_t K = 0;
  std::int64_t expert_pieces = 1;  // that an expert's width is cut into: a choice is sent to each
  std::int64_t sent_R = 0;         // rows that this rank sends to experts
  std::int64_t local_R = 0;        // rows that this rank's experts can receive
  std::int64_t local_F = 0;
  std::int64_t local_dense_F = 0;  // 0: no dense FFN beside the experts
  std::int64_t V = 0;
  Range local_V;  // of it, what this rank embeds and predicts
  std::int64_t L = 0;
  std::int64_t expert_ranks = 1;  // ranks that a layer's experts lie on
  // Tokens whose logits exist at one time: [chunk, V] is the largest tensor of a small model. As many
  // as 2^27 logits are, at least 8.
  std::int64_t head_chunk = 0;

  // Which of the ranks that share a sequence out this is.
  Piece context() const {
    return {.index = T == 0 ? 0 : own_U.begin / T, .count = S == 0 ? 1 : whole_S / S};
  }

  // The expert that the `index`-th of all experts is a piece of, a cut one counted once for each of
  // its pieces.
  std::int64_t expert_of(std::int64_t index) const;
  // A chunk's columns where they are operands of their own, which are aligned.
  std::int64_t pad_chunk(std::int64_t tokens) const;

  // Rows that this rank's experts receive in a micro-batch if all experts of a layer get as many.
  double equal_share_of_rows() const {
    return static_cast<double>(expert_ranks * routed_T * K) /
           static_cast<double>(expert_ranks / expert_pieces);
  }

  TensorChunks tensor_chunks;
  std::int64_t num_chunks(const TensorChunks& chunks) const;
  TokenChunk chunk_of(const TensorChunks& chunks, std::int64_t index) const;

  bool split_sequences = false;  // the residual stream holds a piece of each sequence
  bool tensor_parallel = false;  // attention, dense FFN and head give partial sums
  bool exchange_rows = false;    // experts lie on several ranks
  bool exchange_keys = false;    // tokens of a sequence do
  // How, where they do; never automatic.
  ContextExchange key_exchange = ContextExchange::gather;
  // Whether a sequence is routed on several ranks.
  bool share_sequences() const { return tensor_parallel || exchange_keys; }

  // What a call of attention has of a sequence: queries, keys, and heads of both.
  struct AttentionCall {
    std::int64_t S = 0;
    std::int64_t keys_S = 0;
    std::int64_t N = 0;
    std::int64_t G = 0;
  };
  AttentionCall attention_call() const;
};

// Sequences of the micro-batch that ranks along `context` and `tensor` share, of `sequence_length`
// tokens each.
Dims make_dims(const ModelConfig& model,
               std::int64_t num_sequences,
               std::int64_t sequence_length,
               const Share& share = {});

// The key/value heads of a rank: a piece of them or, where there are fewer heads than ranks, one
// that `sharers` neighbouring ranks hold alike.
struct KvShare {
  Range heads;
  Piece sharers = {};
};
KvShare kv_share(const ModelConfig& model, const Share& share);

// The ranks that hold the key/value heads of `rank`.
RankGroup kv_sharer_ranks(const ModelConfig& model, const Mesh& mesh, std::int64_t rank);

}  // namespace memphis
