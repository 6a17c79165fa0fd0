// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/attention.h"

#include <optional>

#include "csrc/model/attention_heads.h"
#include "csrc/model/block.h"
#include "csrc/model/context_attention.h"
#include "csrc/model/key_value_cache.h"
#include "csrc/model/tensor_products.h"
#include "kernels/rope/rope.h"

namespace memphis {

using namespace kernels;

namespace {

// What a pass adds to the keys and values of its sequences.
void keep_keys(const BlockContext& context, const Layer& layer) {
  const Dims& d = context.dims;
  const CachedSequences& cached = context.cached;
  const std::int64_t width = 2 * d.local_G * d.H;  // keys, then values
  const std::int64_t capacity = cached.cache->capacity();
  const std::size_t element = size_of(layer.qkv_TCH.dtype);
  const auto place_of = [&](const TensorView& heads_TCH, std::int64_t first) {
    return static_cast<std::byte*>(heads_TCH.data) + static_cast<std::size_t>(first) * element;
  };
  for (std::int64_t b = 0; b < d.B; ++b) {
    const auto index = static_cast<std::size_t>(b);
    const std::int64_t begin = (cached.first_sequence + b) * capacity + cached.begin[index];
    for (std::int64_t s = 0; s < cached.count[index]; ++s) {
      device_copy(place_of(context.cached_UCH, (begin + s) * width),
                  place_of(layer.qkv_TCH, ((b * d.S + s) * d.local_C + d.local_N) * d.H),
                  static_cast<std::size_t>(width) * element,
                  context.stream);
    }
  }
}

// The same for queries that go on with sequences: a token's place is its position, and keys of the
// cache that no query has come to are behind all places.
void attend_to_cache(const BlockContext& context, const Layer& layer) {
  const Dims& d = context.dims;
  const std::int64_t capacity = context.cached.cache->capacity();
  const auto of_batch = [&](const TensorView& all) {
    return all.present() ? all.rows(context.cached.first_sequence * capacity, d.B * capacity) : all;
  };
  const TensorView keys_UCH = of_batch(context.cached_UCH);
  attention_forward({.out_TNH = layer.heads_TNH,
                     .lse_BNS = layer.lse_BNS,
                     .q_TNH = queries_of(layer.qkv_TCH, d),
                     .k_UGH = {keys_UCH, 0, d.local_G},
                     .v_UGH = {keys_UCH, d.local_G, d.local_G},
                     .position_T = context.batch.position_T,
                     .place_T = context.batch.position_T,
                     .key_valid_U = of_batch(context.cached.cache->key_valid()),
                     .score = score_of(context.model)},
                    context.stream);
}

// (6) to (9), up to the output projection
void attend(const BlockContext& context, const Layer& layer) {
  const Dims& d = context.dims;
  if (d.exchange_keys) {
    return context_attention_forward(context, layer);
  }
  attention_forward({.out_TNH = layer.heads_TNH,
                     .lse_BNS = layer.lse_BNS,
                     .q_TNH = queries_of(layer.qkv_TCH, d),
                     .k_UGH = keys_of(layer.qkv_TCH, d),
                     .v_UGH = values_of(layer.qkv_TCH, d),
                     .position_T = context.batch.position_T,
                     .key_valid_U = context.key_valid_U,
                     .score = score_of(context.model)},
                    context.stream);
}

}  // namespace

void differentiate_attention(const AttentionBackward& op, Stream stream) {
  require(
      attention_backward_workspace_bytes(op, stream.device) <= op.workspace_W.bytes(),
      "the backward pass of attention asks for more scratch than the plan has for it (they have "
      "a sum each); make attention_workspace_bytes of csrc/plan the kernel's");
  attention_backward(op, stream);
}

void attention_branch_forward(const BlockContext& context,
                              const LayerWeights& weights,
                              const Layer& layer) {
  const Dims& d = context.dims;
  const Stream stream = context.stream;

  // (4) q, k, v in one product: their weights lie one behind the other
  gathered_product(context,
                   {.y_TN = layer.qkv_TCH.reshape({d.T, d.local_C * d.H}),
                    .x_TK = layer.attention_in_TD,
                    .weight_NK = weights.qkv_CD});
  // (5) q and k rotate, v does not
  rope_forward({.x_TCH = layer.qkv_TCH,
                .table_SH = context.shared.rope_table_SH,
                .position_T = context.batch.position_T,
                .num_rotated_heads = d.local_N + d.local_G},
               stream);
  if (context.cached_UCH.present()) {
    keep_keys(context, layer);
    attend_to_cache(context, layer);
  } else {
    attend(context, layer);
  }
  summed_product(context,
                 {.y_TN = layer.attention_out_TD,
                  .x_TK = layer.heads_TNH.reshape({d.T, d.local_N * d.H}),
                  .weight_NK = weights.attention_out_DN});
}

void attention_branch_recompute(const BlockContext& context,
                                const LayerWeights& weights,
                                const Layer& layer,
                                const RecomputeGroups& groups) {
  if (groups.block) {
    attention_branch_forward(context, weights, layer);
  } else if (groups.attention) {
    attend(context, layer);
  }
}

void attention_branch_backward(const BlockContext& context,
                               const LayerWeights& weights,
                               const LayerWeights& gradients,
                               const Layer& layer,
                               const LayerGradients<TensorView>& kept,
                               Backward which) {
  const Dims& d = context.dims;
  const BackwardScratch<TensorView>& scratch = context.scratch;
  const Stream stream = context.stream;
  const bool with_weights = which == Backward::all;

  summed_product_backward(context,
                          {.dx_TK = scratch.dheads_TNH.reshape({d.T, d.local_N * d.H}),
                           .dweight_NK = with_weights ? gradients.attention_out_DN : TensorView{},
                           .dy_TN = kept.dattention_out_TD,
                           .x_TK = layer.heads_TNH.reshape({d.T, d.local_N * d.H}),
                           .weight_NK = weights.attention_out_DN,
                           .weight_gradient = context.weight_gradient});
  std::optional<GatheredTokens> in;
  if (with_weights) {
    in.emplace(context, layer.attention_in_TD, context.shared.whole_TD);
  }
  const AttentionBackward scores = {.dq_TNH = queries_of(kept.dqkv_TCH, d),
                                    .dk_UGH = keys_of(kept.dqkv_TCH, d),
                                    .dv_UGH = values_of(kept.dqkv_TCH, d),
                                    .dout_TNH = scratch.dheads_TNH,
                                    .out_TNH = layer.heads_TNH,
                                    .lse_BNS = layer.lse_BNS,
                                    .q_TNH = queries_of(layer.qkv_TCH, d),
                                    .k_UGH = keys_of(layer.qkv_TCH, d),
                                    .v_UGH = values_of(layer.qkv_TCH, d),
                                    .position_T = context.batch.position_T,
                                    .key_valid_U = context.key_valid_U,
                                    .delta_BNS = scratch.delta_BNS,
                                    .workspace_W = scratch.attention_workspace_W,
                                    .score = score_of(context.model)};
  if (d.exchange_keys) {
    context_attention_backward(context, layer, kept, scores);
  } else {
    differentiate_attention(scores, stream);
  }
  rope_backward({.dx_TCH = kept.dqkv_TCH,
                 .table_SH = context.shared.rope_table_SH,
                 .position_T = context.batch.position_T,
                 .num_rotated_heads = d.local_N + d.local_G},
                stream);
  gathered_product_backward(context,
                            {.dx_TK = scratch.dbranch_in_TD,
                             .dweight_NK = with_weights ? gradients.qkv_CD : TensorView{},
                             .dy_TN = kept.dqkv_TCH.reshape({d.T, d.local_C * d.H}),
                             .weight_NK = weights.qkv_CD,
                             .weight_gradient = context.weight_gradient},
                            in ? &*in : nullptr);
}

std::array<WeightProduct, 2> attention_branch_weight_products(
    const BlockContext& context,
    const LayerWeights& gradients,
    const Layer& layer,
    const LayerGradients<TensorView>& kept) {
  const Dims& d = context.dims;
  return {{{.op = {.dweight_NK = gradients.attention_out_DN,
                   .dy_TN = kept.dattention_out_TD,
                   .x_TK = layer.heads_TNH.reshape({d.T, d.local_N * d.H}),
                   .weight_gradient = context.weight_gradient},
            .piece = WeightProduct::Piece::dy},
           {.op = {.dweight_NK = gradients.qkv_CD,
                   .dy_TN = kept.dqkv_TCH.reshape({d.T, d.local_C * d.H}),
                   .x_TK = layer.attention_in_TD,
                   .weight_gradient = context.weight_gradient},
            .piece = WeightProduct::Piece::x}}};
}

}  // namespace memphis
