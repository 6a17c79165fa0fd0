// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/block.h"

#include "kernels/rmsnorm/rmsnorm.h"

namespace memphis {

using namespace kernels;

void block_forward(const BlockContext& context,
                   const LayerWeights& weights,
                   const Layer& layer,
                   ExpertExchange& exchange,
                   const TensorView& hidden_TD) {
  const auto eps = static_cast<float>(context.model.norm_eps);
  const Stream stream = context.stream;

  // (3) u = RMSNorm(h)
  rmsnorm_forward({.y_TD = layer.attention_in_TD,
                   .rrms_T = layer.attention_in_rrms_T,
                   .x_TD = hidden_TD,
                   .weight_D = weights.pre_attention_norm_D,
                   .eps = eps},
                  stream);
  attention_branch_forward(context, weights, layer);
  // (10) h = h + RMSNorm(a): the post norm lies inside the residual branch
  rmsnorm_forward({.y_TD = layer.residual_TD,
                   .rrms_T = layer.attention_out_rrms_T,
                   .x_TD = layer.attention_out_TD,
                   .weight_D = weights.post_attention_norm_D,
                   .residual_TD = hidden_TD,
                   .eps = eps},
                  stream);
  // (11) u = RMSNorm(h)
  rmsnorm_forward({.y_TD = layer.moe_in_TD,
                   .rrms_T = layer.moe_in_rrms_T,
                   .x_TD = layer.residual_TD,
                   .weight_D = weights.pre_moe_norm_D,
                   .eps = eps},
                  stream);
  moe_branch_forward(context, weights, layer, exchange);
  // (16) h = h + RMSNorm(m)
  rmsnorm_forward({.y_TD = layer.out_TD,
                   .rrms_T = layer.moe_out_rrms_T,
                   .x_TD = layer.moe_out_TD,
                   .weight_D = weights.post_moe_norm_D,
                   .residual_TD = layer.residual_TD,
                   .eps = eps},
                  stream);
}

void block_backward(const BlockContext& context,
                    const LayerWeights& weights,
                    const LayerWeights& gradients,
                    const Layer& layer,
                    const ExpertExchange& exchange,
                    const TensorView& hidden_TD,
                    const AuxiliaryScales& scales) {
  const BackwardScratch<TensorView>& scratch = context.scratch;
  const Stream stream = context.stream;

  // The residual connection passes dhidden on as it is; each branch adds its own to it.
  rmsnorm_backward({.dx_TD = scratch.dbranch_TD,
                    .dweight_D = gradients.post_moe_norm_D,
                    .dy_TD = scratch.dhidden_TD,
                    .x_TD = layer.moe_out_TD,
                    .weight_D = weights.post_moe_norm_D,
                    .rrms_T = layer.moe_out_rrms_T,
                    .partial_PD = scratch.norm_partial_PD},
                   stream);
  moe_branch_backward(context, weights, gradients, layer, exchange, scales);
  rmsnorm_backward({.dx_TD = scratch.dhidden_TD,
                    .dweight_D = gradients.pre_moe_norm_D,
                    .dy_TD = scratch.dbranch_in_TD,
                    .x_TD = layer.residual_TD,
                    .weight_D = weights.pre_moe_norm_D,
                    .rrms_T = layer.moe_in_rrms_T,
                    .partial_PD = scratch.norm_partial_PD,
                    .accumulate = true},
                   stream);
  rmsnorm_backward({.dx_TD = scratch.dbranch_TD,
                    .dweight_D = gradients.post_attention_norm_D,
                    .dy_TD = scratch.dhidden_TD,
                    .x_TD = layer.attention_out_TD,
                    .weight_D = weights.post_attention_norm_D,
                    .rrms_T = layer.attention_out_rrms_T,
                    .partial_PD = scratch.norm_partial_PD},
                   stream);
  attention_branch_backward(context, weights, gradients, layer);
  rmsnorm_backward({.dx_TD = scratch.dhidden_TD,
                    .dweight_D = gradients.pre_attention_norm_D,
                    .dy_TD = scratch.dbranch_in_TD,
                    .x_TD = hidden_TD,
                    .weight_D = weights.pre_attention_norm_D,
                    .rrms_T = layer.attention_in_rrms_T,
                    .partial_PD = scratch.norm_partial_PD,
                    .accumulate = true},
                   stream);
}

}  // namespace memphis
