// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/block.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include "csrc/model/tensor_products.h"
#include "kernels/rmsnorm/rmsnorm.h"

namespace memphis {

using namespace kernels;

namespace {

// (3), (11) or (17), u = RMSNorm(h); with a residual (10) or (16), h + RMSNorm(a): the post norm lies
// inside the residual branch.
void norm(const BlockContext& context,
          const TensorView& y_TD,
          const TensorView& rrms_T,
          const TensorView& x_TD,
          const TensorView& weight_D,
          const TensorView& residual_TD = {},
          const NextNormForward& next = {}) {
  rmsnorm_forward({.y_TD = y_TD,
                   .rrms_T = rrms_T,
                   .x_TD = x_TD,
                   .weight_D = weight_D,
                   .residual_TD = residual_TD,
                   .eps = static_cast<float>(context.model.norm_eps),
                   .next = next},
                  context.stream);
}

// Of what lies between the branches, the second's input too.
void between_branches(const BlockContext& context,
                      const LayerWeights& weights,
                      const Layer& layer,
                      const TensorView& hidden_TD) {
  norm(
      context,
      layer.residual_TD,
      layer.attention_out_rrms_T,
      layer.attention_out_TD,
      weights.post_attention_norm_D,
      hidden_TD,
      {.y_TD = layer.moe_in_TD, .rrms_T = layer.moe_in_rrms_T, .weight_D = weights.pre_moe_norm_D});
}

void moe_in(const BlockContext& context, const LayerWeights& weights, const Layer& layer) {
  norm(context, layer.moe_in_TD, layer.moe_in_rrms_T, layer.residual_TD, weights.pre_moe_norm_D);
}

// What comes before the MoE branch, with the norms between the branches.
void attention_backward(const BlockContext& context,
                        const LayerWeights& weights,
                        const LayerWeights& gradients,
                        const Layer& layer,
                        const LayerGradients<TensorView>& kept,
                        Backward which) {
  const BackwardScratch<TensorView>& scratch = context.scratch;
  rmsnorm_backward({.dx_TD = kept.dattention_out_TD,
                    .dweight_D = gradients.post_attention_norm_D,
                    .dy_TD = scratch.dhidden_TD,
                    .x_TD = layer.attention_out_TD,
                    .weight_D = weights.post_attention_norm_D,
                    .rrms_T = layer.attention_out_rrms_T,
                    .partial_PD = scratch.norm_partial_PD,
                    .weight_gradient = context.weight_gradient,
                    .next = {.dweight_D = gradients.pre_moe_norm_D,
                             .dy_TD = scratch.dbranch_in_TD,
                             .x_TD = layer.residual_TD,
                             .weight_D = weights.pre_moe_norm_D,
                             .rrms_T = layer.moe_in_rrms_T,
                             .partial_PD = scratch.next_norm_partial_PD}},
                   context.stream);
  attention_branch_backward(context, weights, gradients, layer, kept, which);
}

}  // namespace

void stream_norm_forward(const BlockContext& context,
                         const StreamNorm& stream_norm,
                         const TensorView& hidden_TD) {
  norm(context, stream_norm.out_TD, stream_norm.rrms_T, hidden_TD, stream_norm.weight_D);
}

void stream_norm_backward(const BlockContext& context,
                          const StreamNorm& norm,
                          const TensorView& hidden_TD) {
  const BackwardScratch<TensorView>& scratch = context.scratch;
  rmsnorm_backward({.dx_TD = scratch.dhidden_TD,
                    .dweight_D = norm.dweight_D,
                    .dy_TD = scratch.dbranch_in_TD,
                    .x_TD = hidden_TD,
                    .weight_D = norm.weight_D,
                    .rrms_T = norm.rrms_T,
                    .partial_PD = scratch.norm_partial_PD,
                    .accumulate = !norm.last,
                    .weight_gradient = context.weight_gradient},
                   context.stream);
}

void block_end_forward(const BlockContext& context,
                       const LayerWeights& weights,
                       const Layer& layer,
                       const StreamNorm& next) {
  norm(context,
       layer.out_TD,
       layer.moe_out_rrms_T,
       layer.moe_out_TD,
       weights.post_moe_norm_D,
       layer.residual_TD,
       {.y_TD = next.out_TD, .rrms_T = next.rrms_T, .weight_D = next.weight_D});
}

// The residual connection passes dhidden on as it is; each branch adds its own to it.
void block_end_backward(const BlockContext& context,
                        const LayerWeights& weights,
                        const LayerWeights& gradients,
                        const Layer& layer,
                        const StreamNorm& next) {
  const BackwardScratch<TensorView>& scratch = context.scratch;
  NextNormBackward after;
  if (next.present()) {
    after = {.dweight_D = next.dweight_D,
             .dy_TD = scratch.dbranch_in_TD,
             .x_TD = layer.out_TD,
             .weight_D = next.weight_D,
             .rrms_T = next.rrms_T,
             .partial_PD = scratch.next_norm_partial_PD,
             .accumulate = !next.last};
  }
  rmsnorm_backward({.dx_TD = scratch.dbranch_TD,
                    .dweight_D = gradients.post_moe_norm_D,
                    .dy_TD = scratch.dhidden_TD,
                    .x_TD = layer.moe_out_TD,
                    .weight_D = weights.post_moe_norm_D,
                    .rrms_T = layer.moe_out_rrms_T,
                    .partial_PD = scratch.norm_partial_PD,
                    .weight_gradient = context.weight_gradient,
                    .next = after},
                   context.stream);
}

void block_forward(const BlockContext& context,
                   ForwardPart part,
                   const LayerWeights& weights,
                   const Layer& layer,
                   ExpertExchange& exchange,
                   const TensorView& hidden_TD) {
  switch (part) {
    case ForwardPart::attention:
      attention_branch_forward(context, weights, layer);
      between_branches(context, weights, layer, hidden_TD);
      return;
    case ForwardPart::send:
      moe_branch_send(context, weights, layer, exchange);
      return;
    case ForwardPart::experts:
      moe_branch_experts(context, weights, layer, exchange);
      return;
    case ForwardPart::join:
      moe_branch_join(context, weights, layer, exchange);
      return;
  }
}

void block_recompute(const BlockContext& context,
                     RecomputePart part,
                     const LayerWeights& weights,
                     const Layer& layer,
                     const ExpertExchange& exchange,
                     const TensorView& hidden_TD,
                     const RecomputeGroups& groups) {
  if (part == RecomputePart::experts) {
    moe_branch_recompute_experts(context, weights, layer, exchange, groups);
    return;
  }
  if (groups.norm || groups.block) {
    norm(context,
         layer.attention_in_TD,
         layer.attention_in_rrms_T,
         hidden_TD,
         weights.pre_attention_norm_D);
  }
  attention_branch_recompute(context, weights, layer, groups);
  if (groups.block) {
    between_branches(context, weights, layer, hidden_TD);
  } else if (groups.norm) {
    moe_in(context, weights, layer);
  }
  moe_branch_recompute_send(context, layer, exchange, groups);
}

void block_backward(const BlockContext& context,
                    BackwardPart part,
                    const LayerWeights& weights,
                    const LayerWeights& gradients,
                    const Layer& layer,
                    const ExpertExchange& exchange,
                    const LayerGradients<TensorView>& kept,
                    Backward which) {
  switch (part) {
    case BackwardPart::send:
      moe_branch_backward_send(context, layer, exchange, kept);
      return;
    case BackwardPart::experts:
      moe_branch_backward_experts(context, weights, gradients, layer, exchange, kept, which);
      return;
    case BackwardPart::join:
      moe_branch_backward_join(context, weights, gradients, layer, exchange, kept, which);
      attention_backward(context, weights, gradients, layer, kept, which);
      return;
  }
}

void block_backward_weights(const BlockContext& context,
                            const LayerWeights& gradients,
                            const Layer& layer,
                            const ExpertExchange& exchange,
                            const LayerGradients<TensorView>& kept) {
  std::array<WeightProduct, 4> products;
  std::size_t count = 0;
  const auto add = [&](const std::array<WeightProduct, 2>& more) {
    count = static_cast<std::size_t>(std::copy(more.begin(), more.end(), products.begin() + count) -
                                     products.begin());
  };
  if (context.dims.local_dense_F > 0) {
    add(dense_weight_products(context, gradients, layer, kept));
  }
  add(attention_branch_weight_products(context, gradients, layer, kept));
  WeightProducts rest(context, std::span(products).first(count));
  experts_weight_products(context, gradients, layer, exchange, kept);
  rest.run();
}

}  // namespace memphis
