// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <numbers>
#include <optional>

#include "csrc/model/block.h"
#include "csrc/model/exchange.h"
#include "csrc/model/regions.h"
#include "csrc/model/tensor_products.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/experts/experts.h"
#include "kernels/geglu/geglu.h"
#include "kernels/grouped_matmul/grouped_matmul.h"
#include "kernels/permute/permute.h"
#include "kernels/router/router.h"

namespace memphis {

using namespace kernels;

namespace {

// Grok-2: (MLP(u) + MoE(u)) / sqrt(2).
constexpr float kDenseScale = static_cast<float>(1.0 / std::numbers::sqrt2);

// Of the gradient that experts get: their sum is scaled with the dense FFN's output.
float experts_scale(const BlockContext& context) {
  return context.dims.local_dense_F > 0 ? kDenseScale : 1.0F;
}

// What a layer's experts work on: the rows that are there, of the room that the plan made.
struct ExpertRows {
  TensorView rows_RD;
  TensorView gate_up_R2F;
  TensorView hidden_RF;
  TensorView offsets_E1;
  TensorView gates;     // [T, K], or as they arrived
  TensorView source_R;  // into them
};

ExpertRows expert_rows(const BlockContext& context,
                       const Layer& layer,
                       const ExpertExchange& exchange) {
  const std::int64_t R = exchange.num_arrived();
  ExpertRows result{.rows_RD = layer.rows_RD.rows(0, R),
                    .gate_up_R2F = layer.gate_up_R2F.rows(0, R),
                    .hidden_RF = layer.expert_hidden_RF.rows(0, R),
                    .offsets_E1 = layer.offsets_E1,
                    .gates = layer.gates_TK,
                    .source_R = layer.source_R};
  if (context.dims.exchange_rows) {
    result.offsets_E1 = layer.arrival_offsets_E1;
    result.gates = layer.arrived_gates_R1.rows(0, R);
    result.source_R = layer.arrival_source_R.rows(0, R);
  }
  return result;
}

// Rows of tokens, scaled, on their way to the experts of this rank; where these have all rows here,
// at once to `rows_RD`, in the order of the experts.
void send_rows(const BlockContext& context,
               const Layer& layer,
               const ExpertExchange& exchange,
               const TensorView& rows_RD,
               const TensorView& tokens_TD,
               float scale,
               const char* name) {
  const bool travel = context.dims.exchange_rows;
  const TensorView& sent_RD = travel ? context.rows.sent_RD : rows_RD;
  permute({.x_RD = sent_RD,
           .x_TD = tokens_TD,
           .source_R = layer.source_R,
           .slot_TK = layer.slot_TK,
           .scale = scale},
          context.stream);
  if (travel) {
    exchange.dispatch(
        context, context.rows.received_RD.rows(0, exchange.num_arrived()), sent_RD, name);
  }
}

// There they are.
void take_rows(const BlockContext& context,
               const Layer& layer,
               const ExpertExchange& exchange,
               const TensorView& rows_RD) {
  if (!context.dims.exchange_rows) {
    return;
  }
  exchange.arrive(context);
  const std::int64_t R = exchange.num_arrived();
  permute({.x_RD = rows_RD.rows(0, R),
           .x_TD = context.rows.received_RD.rows(0, R),
           .source_R = layer.arrival_source_R.rows(0, R)},
          context.stream);
}

// Back on their way to their tokens.
void return_rows(const BlockContext& context,
                 const Layer& layer,
                 const ExpertExchange& exchange,
                 const TensorView& rows_RD,
                 const char* name) {
  if (!context.dims.exchange_rows) {
    return;
  }
  const std::int64_t R = exchange.num_arrived();
  const TensorView received_RD = context.rows.received_RD.rows(0, R);
  unpermute({.y_TD = received_RD,
             .y_RD = rows_RD.rows(0, R),
             .slot_TK = layer.arrival_slot_R1.rows(0, R)},
            context.stream);
  exchange.combine(context, context.rows.sent_RD, received_RD, name);
}

// There they are, summed over each token's choices; where they did not travel, they are `rows_RD`.
void sum_rows(const BlockContext& context,
              const Layer& layer,
              const ExpertExchange& exchange,
              const TensorView& tokens_TD,
              const TensorView& rows_RD) {
  exchange.arrive(context);
  const TensorView& returned_RD = context.dims.exchange_rows ? context.rows.sent_RD : rows_RD;
  unpermute({.y_TD = tokens_TD, .y_RD = returned_RD, .slot_TK = layer.slot_TK}, context.stream);
}

// The gates travel with their rows: an expert multiplies by them before its down projection.
void send_gates(const BlockContext& context,
                const Layer& layer,
                const ExpertExchange& exchange,
                const TensorView& gates_TK) {
  if (!context.dims.exchange_rows) {
    return;
  }
  const TensorView& sent_gates_R1 = context.rows.sent_gates_R1;
  permute({.x_RD = sent_gates_R1,
           .x_TD = gates_TK.reshape({context.dims.sent_R, 1}),
           .source_R = layer.source_R},
          context.stream);
  exchange.dispatch(
      context, layer.arrived_gates_R1.rows(0, exchange.num_arrived()), sent_gates_R1, "moe.gates");
}

void return_gate_gradients(const BlockContext& context, const ExpertExchange& exchange) {
  if (!context.dims.exchange_rows) {
    return;
  }
  const BackwardScratch<TensorView>& scratch = context.scratch;
  exchange.combine(context,
                   scratch.dsent_gates_R1,
                   scratch.darrived_gates_R1.rows(0, exchange.num_arrived()),
                   "moe.dgates");
}

// Once they are there.
void take_gate_gradients(const BlockContext& context, const Layer& layer) {
  if (!context.dims.exchange_rows) {
    return;
  }
  const Dims& d = context.dims;
  const BackwardScratch<TensorView>& scratch = context.scratch;
  const bool cut = d.expert_pieces > 1;
  const TensorView& dchoices_TK = cut ? scratch.dspread_gates_TK : scratch.dgates_TK;
  permute({.x_RD = dchoices_TK.reshape({d.sent_R, 1}),
           .x_TD = scratch.dsent_gates_R1,
           .source_R = layer.slot_TK.reshape({d.sent_R})},
          context.stream);
  if (cut) {
    gather_choices(
        {.dgates_TK = scratch.dgates_TK, .dspread_TK = dchoices_TK, .copies = d.expert_pieces},
        context.stream);
  }
}

void route(const BlockContext& context,
           const LayerWeights& weights,
           const Layer& layer,
           const TensorView& routed_TD) {
  // (12), (13) softmax over all experts, the K largest, not renormalised
  router_forward({.logits_TE = layer.router_logits_TE,
                  .probs_TE = layer.router_probs_TE,
                  .gates_TK = layer.gates_TK,
                  .experts_TK = layer.experts_TK,
                  .counts_BE = layer.counts_BE,
                  .probs_sum_BE = layer.probs_sum_BE,
                  .valid_B = layer.valid_B,
                  .z_T = layer.z_T,
                  .x_TD = routed_TD,
                  .weight_ED = weights.router_ED,
                  .valid_T = context.routed_valid_T,
                  .cap = static_cast<float>(context.model.router_cap)},
                 context.stream);
}

// A sequence's pieces are balanced as one. Nobody needs the losses before the experts are done.
void balance(const BlockContext& context, const Layer& layer, ExpertExchange& exchange) {
  exchange.wait_for_loads(context.stream);
  router_balance({.balance_B = layer.balance_B,
                  .counts_BE = layer.counts_BE,
                  .probs_sum_BE = layer.probs_sum_BE,
                  .valid_B = layer.valid_B,
                  .experts_per_token = context.dims.K},
                 context.stream);
}

void dense_up(const BlockContext& context, const LayerWeights& weights, const Layer& layer) {
  gathered_product(context,
                   {.y_TN = layer.dense_gate_up_TF,
                    .x_TK = layer.moe_in_TD,
                    .weight_NK = weights.dense_gate_up_FD});
}

void dense_activation(const BlockContext& context, const Layer& layer) {
  geglu_forward({.y_RF = layer.dense_hidden_TF, .gate_up_R2F = layer.dense_gate_up_TF},
                context.stream);
}

// `moe_out`, the experts' sum, is on its way to layer.moe_out_TD, or there.
void dense_forward(const BlockContext& context,
                   const LayerWeights& weights,
                   const Layer& layer,
                   std::unique_ptr<Communicator::Work> moe_out) {
  const SharedActivations<TensorView>& shared = context.shared;
  const Stream stream = context.stream;
  dense_up(context, weights, layer);
  dense_activation(context, layer);
  summed_product(context,
                 {.y_TN = shared.dense_out_TD,
                  .x_TK = layer.dense_hidden_TF,
                  .weight_NK = weights.dense_down_DF});
  if (moe_out) {
    moe_out->wait(stream);
  }
  add({.y = layer.moe_out_TD,
       .a = layer.moe_out_TD,
       .b = shared.dense_out_TD,
       .scale = kDenseScale},
      stream);
}

// `dbranch_in` is on its way to scratch.dbranch_in_TD, or there.
void dense_backward(const BlockContext& context,
                    const LayerWeights& weights,
                    const LayerWeights& gradients,
                    const Layer& layer,
                    const LayerGradients<TensorView>& kept,
                    Backward which,
                    std::unique_ptr<Communicator::Work> dbranch_in) {
  const BackwardScratch<TensorView>& scratch = context.scratch;
  const Stream stream = context.stream;
  const bool with_weights = which == Backward::all;
  scale({.y = kept.ddense_out_TD, .x = scratch.dbranch_TD, .scale = kDenseScale}, stream);
  summed_product_backward(context,
                          {.dx_TK = scratch.ddense_hidden_TF,
                           .dweight_NK = with_weights ? gradients.dense_down_DF : TensorView{},
                           .dy_TN = kept.ddense_out_TD,
                           .x_TK = layer.dense_hidden_TF,
                           .weight_NK = weights.dense_down_DF,
                           .weight_gradient = context.weight_gradient});
  std::optional<GatheredTokens> in;
  if (with_weights) {
    in.emplace(context, layer.moe_in_TD, context.shared.whole_TD);
  }
  geglu_backward({.dgate_up_R2F = layer.dense_gate_up_TF,
                  .dy_RF = scratch.ddense_hidden_TF,
                  .gate_up_R2F = layer.dense_gate_up_TF},
                 stream);
  // The branch's own gradient has been used up.
  const TensorView& dinput_TD = scratch.dbranch_TD;
  gathered_product_backward(context,
                            {.dx_TK = dinput_TD,
                             .dweight_NK = with_weights ? gradients.dense_gate_up_FD : TensorView{},
                             .dy_TN = layer.dense_gate_up_TF,
                             .weight_NK = weights.dense_gate_up_FD,
                             .weight_gradient = context.weight_gradient},
                            in ? &*in : nullptr);
  if (dbranch_in) {
    dbranch_in->wait(stream);
  }
  add({.y = scratch.dbranch_in_TD, .a = scratch.dbranch_in_TD, .b = dinput_TD}, stream);
}

// What experts keep of their work, computed again, with the same bits: up-projections, or their
// activations, or both in one pass.
void expert_recompute(const BlockContext& context,
                      const LayerWeights& weights,
                      const Layer& layer,
                      const ExpertExchange& exchange,
                      bool up,
                      bool activations) {
  const ExpertRows rows = expert_rows(context, layer, exchange);
  if (up && activations) {
    experts_forward({.gate_up_R2F = rows.gate_up_R2F,
                     .hidden_RF = rows.hidden_RF,
                     .x_RD = rows.rows_RD,
                     .gate_up_weight_EFD = weights.gate_up_EFD,
                     .down_weight_EDF = weights.down_EDF,
                     .offsets_E1 = rows.offsets_E1,
                     .gates_TK = rows.gates,
                     .source_R = rows.source_R},
                    context.stream);
  } else if (up) {
    grouped_matmul_forward({.y_RN = rows.gate_up_R2F,
                            .x_RK = rows.rows_RD,
                            .weight_ENK = weights.gate_up_EFD,
                            .offsets_E1 = rows.offsets_E1},
                           context.stream);
  } else if (activations) {
    geglu_forward({.y_RF = rows.hidden_RF,
                   .gate_up_R2F = rows.gate_up_R2F,
                   .gates_TK = rows.gates,
                   .source_R = rows.source_R},
                  context.stream);
  }
}

}  // namespace

void moe_branch_send(const BlockContext& context,
                     const LayerWeights& weights,
                     const Layer& layer,
                     ExpertExchange& exchange) {
  const SharedActivations<TensorView>& shared = context.shared;
  const Dims& d = context.dims;
  const Stream stream = context.stream;
  const TensorView routed_TD = routed_tokens(context, layer.moe_in_TD);

  route(context, weights, layer, routed_TD);
  exchange.sum_loads(context, layer);
  TensorView choices_TK = layer.experts_TK;
  TensorView gates_TK = layer.gates_TK;
  if (d.expert_pieces > 1) {
    choices_TK = shared.spread_experts_TK;
    gates_TK = shared.spread_gates_TK;
    spread_choices({.experts_TK = choices_TK,
                    .gates_TK = gates_TK,
                    .chosen_TK = layer.experts_TK,
                    .chosen_gates_TK = layer.gates_TK,
                    .copies = d.expert_pieces,
                    .experts_per_rank = d.local_E},
                   stream);
  }
  permute_index({.slot_TK = layer.slot_TK,
                 .source_R = layer.source_R,
                 .offsets_E1 = layer.offsets_E1,
                 .experts_TK = choices_TK,
                 .chunk_counts_PE = shared.permute_counts_PE},
                stream);
  exchange.count(context, layer);
  send_rows(context, layer, exchange, layer.rows_RD, routed_TD, 1.0F, "moe.dispatch");
  send_gates(context, layer, exchange, gates_TK);
}

void moe_branch_experts(const BlockContext& context,
                        const LayerWeights& weights,
                        const Layer& layer,
                        const ExpertExchange& exchange) {
  take_rows(context, layer, exchange, layer.rows_RD);
  // (14); the expert gate of (15) multiplies before the down projection: see geglu.h
  const ExpertRows rows = expert_rows(context, layer, exchange);
  const TensorView expert_out_RD = context.shared.expert_out_RD.rows(0, exchange.num_arrived());
  experts_forward({.y_RD = expert_out_RD,
                   .gate_up_R2F = rows.gate_up_R2F,
                   .hidden_RF = rows.hidden_RF,
                   .x_RD = rows.rows_RD,
                   .gate_up_weight_EFD = weights.gate_up_EFD,
                   .down_weight_EDF = weights.down_EDF,
                   .offsets_E1 = rows.offsets_E1,
                   .gates_TK = rows.gates,
                   .source_R = rows.source_R},
                  context.stream);
  return_rows(context, layer, exchange, expert_out_RD, "moe.combine");
}

void moe_branch_join(const BlockContext& context,
                     const LayerWeights& weights,
                     const Layer& layer,
                     ExpertExchange& exchange) {
  // (15) the sum over a token's experts
  sum_rows(context,
           layer,
           exchange,
           routed_part_of(context, layer.moe_out_TD),
           context.shared.expert_out_RD);
  if (context.dims.local_dense_F > 0) {
    dense_forward(context, weights, layer, start_joining_routed_parts(context, layer.moe_out_TD));
  } else {
    join_routed_parts(context, layer.moe_out_TD);
  }
  balance(context, layer, exchange);
}

void moe_branch_recompute_send(const BlockContext& context,
                               const Layer& layer,
                               const ExpertExchange& exchange,
                               const RecomputeGroups& groups) {
  // Rows that have come from other ranks are kept, but with a whole block.
  if (groups.block || (groups.norm && !context.dims.exchange_rows)) {
    send_rows(context,
              layer,
              exchange,
              layer.rows_RD,
              routed_tokens(context, layer.moe_in_TD),
              1.0F,
              "moe.dispatch");
  }
}

void moe_branch_recompute_experts(const BlockContext& context,
                                  const LayerWeights& weights,
                                  const Layer& layer,
                                  const ExpertExchange& exchange,
                                  const RecomputeGroups& groups) {
  if (groups.block) {
    take_rows(context, layer, exchange, layer.rows_RD);
  }
  const bool up = groups.experts || groups.block;
  const bool activations = groups.geglu || groups.block;
  expert_recompute(context, weights, layer, exchange, up, activations);
  if (up && context.dims.local_dense_F > 0) {
    dense_up(context, weights, layer);
  }
  if (activations && context.dims.local_dense_F > 0) {
    dense_activation(context, layer);
  }
}

void moe_branch_backward_send(const BlockContext& context,
                              const Layer& layer,
                              const ExpertExchange& exchange,
                              const LayerGradients<TensorView>& kept) {
  // The sum's derivative hands every row its token's gradient.
  send_rows(context,
            layer,
            exchange,
            kept.dexpert_out_RD.rows(0, exchange.num_arrived()),
            routed_tokens(context, context.scratch.dbranch_TD),
            experts_scale(context),
            "moe.dcombine");
}

void moe_branch_backward_experts(const BlockContext& context,
                                 const LayerWeights& weights,
                                 const LayerWeights& gradients,
                                 const Layer& layer,
                                 const ExpertExchange& exchange,
                                 const LayerGradients<TensorView>& kept,
                                 Backward which) {
  const BackwardScratch<TensorView>& scratch = context.scratch;
  const std::int64_t R = exchange.num_arrived();
  const TensorView dy_RD = kept.dexpert_out_RD.rows(0, R);
  const bool with_weights = which == Backward::all;
  take_rows(context, layer, exchange, dy_RD);
  const ExpertRows rows = expert_rows(context, layer, exchange);
  experts_backward({.dx_RD = scratch.drows_RD.rows(0, R),
                    .dgate_up_weight_EFD = with_weights ? gradients.gate_up_EFD : TensorView{},
                    .ddown_weight_EDF = with_weights ? gradients.down_EDF : TensorView{},
                    .dgates_TK = context.dims.exchange_rows ? scratch.darrived_gates_R1.rows(0, R)
                                                            : scratch.dgates_TK,
                    .gate_up_R2F = rows.gate_up_R2F,
                    .dhidden_RF = scratch.dexpert_hidden_RF.rows(0, R),
                    .dy_RD = dy_RD,
                    .x_RD = rows.rows_RD,
                    .hidden_RF = rows.hidden_RF,
                    .gate_up_weight_EFD = weights.gate_up_EFD,
                    .down_weight_EDF = weights.down_EDF,
                    .offsets_E1 = rows.offsets_E1,
                    .gates_TK = rows.gates,
                    .source_R = rows.source_R,
                    .weight_gradient = context.weight_gradient},
                   context.stream);
  return_rows(context, layer, exchange, scratch.drows_RD, "moe.ddispatch");
  return_gate_gradients(context, exchange);
}

void moe_branch_backward_join(const BlockContext& context,
                              const LayerWeights& weights,
                              const LayerWeights& gradients,
                              const Layer& layer,
                              const ExpertExchange& exchange,
                              const LayerGradients<TensorView>& kept,
                              Backward which) {
  const BackwardScratch<TensorView>& scratch = context.scratch;
  const TensorView drouted_TD = routed_part_of(context, scratch.dbranch_in_TD);
  sum_rows(context, layer, exchange, drouted_TD, scratch.drows_RD);
  take_gate_gradients(context, layer);
  router_backward({.dx_TD = drouted_TD,
                   .dweight_ED = gradients.router_ED,
                   .dlogits_TE = scratch.drouter_logits_TE,
                   .partial_PED = scratch.router_partial_PED,
                   .dgates_TK = scratch.dgates_TK,
                   .logits_TE = layer.router_logits_TE,
                   .probs_TE = layer.router_probs_TE,
                   .experts_TK = layer.experts_TK,
                   .counts_BE = layer.counts_BE,
                   .valid_B = layer.valid_B,
                   .x_TD = routed_tokens(context, layer.moe_in_TD),
                   .weight_ED = weights.router_ED,
                   .loss_scales_2 = step_scalar_view(context.shared, StepScalar::auxiliary),
                   .valid_T = context.routed_valid_T,
                   .cap = static_cast<float>(context.model.router_cap),
                   .accumulate = true,
                   .weight_gradient = context.weight_gradient},
                  context.stream);
  if (context.dims.local_dense_F > 0) {
    dense_backward(context,
                   weights,
                   gradients,
                   layer,
                   kept,
                   which,
                   start_joining_routed_parts(context, scratch.dbranch_in_TD));
  } else {
    join_routed_parts(context, scratch.dbranch_in_TD);
  }
}

void experts_weight_products(const BlockContext& context,
                             const LayerWeights& gradients,
                             const Layer& layer,
                             const ExpertExchange& exchange,
                             const LayerGradients<TensorView>& kept) {
  const ExpertRows rows = expert_rows(context, layer, exchange);
  experts_backward_weights({.dgate_up_weight_EFD = gradients.gate_up_EFD,
                            .ddown_weight_EDF = gradients.down_EDF,
                            .dgate_up_R2F = rows.gate_up_R2F,
                            .dy_RD = kept.dexpert_out_RD.rows(0, exchange.num_arrived()),
                            .x_RD = rows.rows_RD,
                            .hidden_RF = rows.hidden_RF,
                            .offsets_E1 = rows.offsets_E1,
                            .weight_gradient = context.weight_gradient},
                           context.stream);
}

std::array<WeightProduct, 2> dense_weight_products(const BlockContext& context,
                                                   const LayerWeights& gradients,
                                                   const Layer& layer,
                                                   const LayerGradients<TensorView>& kept) {
  return {{{.op = {.dweight_NK = gradients.dense_down_DF,
                   .dy_TN = kept.ddense_out_TD,
                   .x_TK = layer.dense_hidden_TF,
                   .weight_gradient = context.weight_gradient},
            .piece = WeightProduct::Piece::dy},
           {.op = {.dweight_NK = gradients.dense_gate_up_FD,
                   .dy_TN = layer.dense_gate_up_TF,
                   .x_TK = layer.moe_in_TD,
                   .weight_gradient = context.weight_gradient},
            .piece = WeightProduct::Piece::x}}};
}

}  // namespace memphis
