// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/config/config.h"
#include "csrc/core/dtype.h"

// A training run in the words that its time follows from. A config of memphis is one (describe_run),
// and so are runs of others that no config can say: dense models, low-rank attention, sequences cut
// over ranks, FP8, tokens that are dropped. It is through these that the times are held to what
// others measured (docs/planner.md).
namespace memphis {

struct ModelShape {
  std::int64_t num_layers = 0;
  std::int64_t d_model = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;        // of queries and keys
  std::int64_t value_dim = 0;       // of values; 0: head_dim
  std::int64_t query_rank = 0;      // of low-rank queries; 0: one matrix
  std::int64_t key_value_rank = 0;  // of low-rank keys and values; 0: one matrix
  std::int64_t rotated_dim = 0;     // of a low-rank key, beside its rank
  std::int64_t window = 0;          // of every second layer's attention; 0: none
  std::int64_t norms_of_layer = 2;  // over d_model
  std::int64_t vocab_size = 0;
  bool tied_embeddings = false;  // one matrix embeds and predicts
  bool gated = true;             // an FFN has three matrices, else two

  std::int64_t dense_layers = 0;    // the first ones, without experts
  std::int64_t experts_every = 1;   // of the others, each so-many-th has experts
  std::int64_t dense_ffn_dim = 0;   // of layers without experts
  std::int64_t shared_ffn_dim = 0;  // beside the experts
  std::int64_t expert_ffn_dim = 0;  // of one expert
  std::int64_t num_experts = 0;     // 0: no layer has any
  std::int64_t experts_per_token = 0;
  std::int64_t nodes_of_token = 0;    // that a router lets a token's experts lie on; 0: any
  std::int64_t predicted_layers = 0;  // further layers, in the last stage with a head each

  std::int64_t values() const { return value_dim == 0 ? head_dim : value_dim; }
  bool has_experts(std::int64_t layer) const {
    return num_experts > 0 && layer >= dense_layers && (layer + 1) % experts_every == 0;
  }
};

enum class Products : std::uint8_t { f32, bf16, fp8 };

// How well known programs do what a plan leaves open.
struct Techniques {
  Products products = Products::bf16;
  // Attention as FlashAttention-2 has it on a Hopper GPU, of which it reaches half.
  bool older_attention = false;
  // Ops between products are kernels of their own, one each.
  bool eager = false;
  bool tensor_overlap = false;   // gathers and sums of tensor ranks go on beside their products
  bool tensor_beside = false;    // the same as memphis has it, which is computed and not fitted
  bool expert_overlap = false;   // rows of a micro-batch travel beside the work of another one
  bool context_overlap = true;   // keys of other ranks travel beside the scores of what has come
  bool message_overlap = true;   // messages of a pipeline go on beside work
  bool data_overlap = true;      // gradients and weights of replicas go on beside work
  bool one_row_a_node = false;   // a token crosses the network once for each node it has experts on
  bool routed = false;           // by a router, and no token dropped: experts have unequal loads
  bool experts_at_once = false;  // one kernel has the products of all experts of a rank
  bool sharded_weights = false;  // ZeRO-3: weights are gathered for each micro-batch and pass
  bool experts_as_tensor = false;  // pieces of an expert are as far apart as tensor ranks, and rows
                                   // are gathered among them
  double gradient_bytes = 4;       // of an element, where micro-batches are summed
  // Of a layer's forward pass, what is done again: products, scores, and everything between.
  double again_products = 0;
  double again_scores = 0;
  double again_streams = 0;
  bool again_exchanges = false;
};

struct RunDescription {
  ModelShape model;
  ParallelConfig parallel;  // `stages` may be empty: evenly, or else as balanced as they can be
  BatchConfig batch;
  Techniques techniques;
  std::int64_t num_ranks = 1;

  std::int64_t num_micro_batches() const;  // of a step, on each rank
  double step_tokens() const;
};

// What memphis does of its own: rows travel beside other work where the config allows it, though memory
// may not, and what tensor ranks exchange in as many chunks as there may be; experts have the loads that
// a router gives them.
RunDescription describe_run(const Config& config, DType compute, std::int64_t num_ranks);

// The device that a description is of, which may be made on a machine without it: a GPU, unless the
// config asks for the CPU.
Device described_device(const Config& config);

// Of a token, forward and backward, as model_flops_per_token counts it.
struct DescribedFlops {
  double halved = 0;
  double unhalved = 0;
};
DescribedFlops flops_per_token(const ModelShape& model, std::int64_t sequence_length);

// Elements of the matrices of one layer, and of the embedding or the head.
struct DescribedParameters {
  double attention = 0;
  double dense = 0;  // FFN that every token meets
  double one_expert = 0;
};
DescribedParameters parameters_of(const ModelShape& model, std::int64_t layer);

}  // namespace memphis
