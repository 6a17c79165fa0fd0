// SPDX-License-Identifier: Apache-2.0
#include <numbers>

#include "csrc/model/block.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/experts/experts.h"
#include "kernels/geglu/geglu.h"
#include "kernels/matmul/matmul.h"
#include "kernels/permute/permute.h"
#include "kernels/router/router.h"

namespace memphis {

using namespace kernels;

namespace {

// Grok-2: (MLP(u) + MoE(u)) / sqrt(2).
constexpr float kDenseScale = static_cast<float>(1.0 / std::numbers::sqrt2);

float experts_scale(const BlockContext& context) {
  return context.dims.dense_F > 0 ? kDenseScale : 1.0F;
}

}  // namespace

void moe_branch_forward(const BlockContext& context,
                        const LayerWeights& weights,
                        const Layer& layer) {
  const SharedActivations<TensorView>& shared = context.shared;
  const Stream stream = context.stream;

  // (12), (13) softmax over all experts, the K largest, not renormalised
  router_forward({.logits_TE = layer.router_logits_TE,
                  .probs_TE = layer.router_probs_TE,
                  .gates_TK = layer.gates_TK,
                  .experts_TK = layer.experts_TK,
                  .counts_BE = layer.counts_BE,
                  .balance_B = layer.balance_B,
                  .z_T = layer.z_T,
                  .x_TD = layer.moe_in_TD,
                  .weight_ED = weights.router_ED,
                  .valid_T = context.key_valid_T,
                  .cap = static_cast<float>(context.model.router_cap)},
                 stream);
  permute_index({.slot_TK = layer.slot_TK,
                 .source_R = layer.source_R,
                 .offsets_E1 = layer.offsets_E1,
                 .experts_TK = layer.experts_TK,
                 .chunk_counts_PE = shared.permute_counts_PE},
                stream);
  permute({.x_RD = layer.rows_RD, .x_TD = layer.moe_in_TD, .source_R = layer.source_R}, stream);
  // (14); the expert gate of (15) multiplies before the down projection: see geglu.h
  experts_forward({.y_RD = shared.expert_out_RD,
                   .gate_up_R2F = layer.gate_up_R2F,
                   .hidden_RF = layer.expert_hidden_RF,
                   .x_RD = layer.rows_RD,
                   .gate_up_weight_EFD = weights.gate_up_EFD,
                   .down_weight_EDF = weights.down_EDF,
                   .offsets_E1 = layer.offsets_E1,
                   .gates_TK = layer.gates_TK,
                   .source_R = layer.source_R},
                  stream);
  // (15) the sum over a token's experts
  unpermute({.y_TD = layer.moe_out_TD,
             .y_RD = shared.expert_out_RD,
             .slot_TK = layer.slot_TK,
             .scale = experts_scale(context)},
            stream);

  if (context.dims.dense_F > 0) {
    matmul_forward({.y_TN = layer.dense_gate_up_TF,
                    .x_TK = layer.moe_in_TD,
                    .weight_NK = weights.dense_gate_up_FD},
                   stream);
    geglu_forward({.y_RF = layer.dense_hidden_TF, .gate_up_R2F = layer.dense_gate_up_TF}, stream);
    matmul_forward({.y_TN = shared.dense_out_TD,
                    .x_TK = layer.dense_hidden_TF,
                    .weight_NK = weights.dense_down_DF},
                   stream);
    scale({.y = shared.dense_out_TD, .x = shared.dense_out_TD, .scale = kDenseScale}, stream);
    add({.y = layer.moe_out_TD, .a = layer.moe_out_TD, .b = shared.dense_out_TD}, stream);
  }
}

void moe_branch_backward(const BlockContext& context,
                         const LayerWeights& weights,
                         const LayerWeights& gradients,
                         const Layer& layer,
                         const AuxiliaryScales& scales) {
  const SharedActivations<TensorView>& shared = context.shared;
  const BackwardScratch<TensorView>& scratch = context.scratch;
  const Stream stream = context.stream;

  // The sum's derivative hands every row its token's gradient.
  permute({.x_RD = shared.expert_out_RD,
           .x_TD = scratch.dbranch_TD,
           .source_R = layer.source_R,
           .scale = experts_scale(context)},
          stream);
  experts_backward({.dx_RD = scratch.drows_RD,
                    .dgate_up_weight_EFD = gradients.gate_up_EFD,
                    .ddown_weight_EDF = gradients.down_EDF,
                    .dgates_TK = scratch.dgates_TK,
                    .gate_up_R2F = layer.gate_up_R2F,
                    .dhidden_RF = scratch.dexpert_hidden_RF,
                    .dy_RD = shared.expert_out_RD,
                    .x_RD = layer.rows_RD,
                    .hidden_RF = layer.expert_hidden_RF,
                    .gate_up_weight_EFD = weights.gate_up_EFD,
                    .down_weight_EDF = weights.down_EDF,
                    .offsets_E1 = layer.offsets_E1,
                    .gates_TK = layer.gates_TK,
                    .source_R = layer.source_R},
                   stream);
  unpermute({.y_TD = scratch.dbranch_in_TD, .y_RD = scratch.drows_RD, .slot_TK = layer.slot_TK},
            stream);
  router_backward({.dx_TD = scratch.dbranch_in_TD,
                   .dweight_ED = gradients.router_ED,
                   .dlogits_TE = scratch.drouter_logits_TE,
                   .partial_PED = scratch.router_partial_PED,
                   .dgates_TK = scratch.dgates_TK,
                   .logits_TE = layer.router_logits_TE,
                   .probs_TE = layer.router_probs_TE,
                   .experts_TK = layer.experts_TK,
                   .counts_BE = layer.counts_BE,
                   .x_TD = layer.moe_in_TD,
                   .weight_ED = weights.router_ED,
                   .valid_T = context.key_valid_T,
                   .cap = static_cast<float>(context.model.router_cap),
                   .balance_scale = scales.balance,
                   .z_scale = scales.z,
                   .accumulate = true},
                  stream);

  if (context.dims.dense_F > 0) {
    scale({.y = shared.dense_out_TD, .x = scratch.dbranch_TD, .scale = kDenseScale}, stream);
    matmul_backward({.dx_TK = scratch.ddense_hidden_TF,
                     .dweight_NK = gradients.dense_down_DF,
                     .dy_TN = shared.dense_out_TD,
                     .x_TK = layer.dense_hidden_TF,
                     .weight_NK = weights.dense_down_DF},
                    stream);
    geglu_backward({.dgate_up_R2F = layer.dense_gate_up_TF,
                    .dy_RF = scratch.ddense_hidden_TF,
                    .gate_up_R2F = layer.dense_gate_up_TF},
                   stream);
    matmul_backward({.dx_TK = scratch.dbranch_in_TD,
                     .dweight_NK = gradients.dense_gate_up_FD,
                     .dy_TN = layer.dense_gate_up_TF,
                     .x_TK = layer.moe_in_TD,
                     .weight_NK = weights.dense_gate_up_FD,
                     .accumulate = true},
                    stream);
  }
}

}  // namespace memphis
