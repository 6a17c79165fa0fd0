// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "csrc/core/arena.h"
#include "csrc/core/device.h"
#include "csrc/core/tensor.h"
#include "csrc/plan/dims.h"
#include "csrc/plan/recompute.h"
#include "csrc/plan/stages.h"

namespace memphis {

// Every tensor of one micro-batch, as a spec (for the plan) or as a view (for the model). A member
// is listed once more in its for_each and gets its spec in plan_activations, and nowhere else.

// What a layer's backward pass needs of its forward pass.
template <class T>
struct LayerActivations {
  T attention_in_TD;  // pre_attention_norm(h)
  T attention_in_rrms_T;
  T qkv_TCH;  // after the rotary embedding
  T heads_TNH;
  T lse_BNS;
  T attention_out_TD;  // before the post norm
  T attention_out_rrms_T;
  T residual_TD;  // h + attention branch
  T moe_in_TD;    // pre_moe_norm(residual)
  T moe_in_rrms_T;
  T router_logits_TE;
  T router_probs_TE;
  T gates_TK;
  T experts_TK;
  T counts_BE;
  T probs_sum_BE;
  T valid_B;
  T balance_B;
  T z_T;
  T slot_TK;  // [routed_T, K * expert_pieces]
  T source_R;
  T offsets_E1;  // of all experts, a cut one once for each of its pieces
  T rows_RD;     // moe_in, by expert of this rank
  // Where experts lie on several ranks: what arrived, and its order by expert.
  T arrived_gates_R1;
  T arrival_slot_R1;
  T arrival_source_R;
  T arrival_offsets_E1;
  T gate_up_R2F;
  T expert_hidden_RF;  // geglu of it, times the expert gate
  T dense_gate_up_TF;  // [T, 2 * dense_F]
  T dense_hidden_TF;
  T moe_out_TD;  // before the post norm
  T moe_out_rrms_T;
  T out_TD;  // residual + MoE branch: the next layer's h

  template <class Self, class Other, class Visit>
  static void for_each(Self& a, Other& b, const Visit& visit);
};

// What else a micro-batch has in a stage, from when it is loaded to the end of its backward pass.
template <class T>
struct BatchActivations {
  T tokens_T;   // absent but in the stage of the embedding
  T targets_T;  // this, final_in, final_rrms and loss but in that of the head
  T position_T;
  T valid_T;  // u8
  // Where the tokens of a sequence lie on several ranks, what csrc/model/context_attention.h reads of
  // these: the places of this rank's; of all keys of the sequences, in the order in which attention
  // has them, whether each is valid, its position in its document and its place; the number that
  // ContextOrder gives each key and, the other way, the key of each number.
  T place_T;
  T key_valid_U;  // u8
  T key_position_U;
  T key_place_U;
  T key_number_U;
  T key_of_number_U;
  T routed_valid_T;  // of the routed tokens, where tensor ranks share the work of a token
  T hidden_TD;       // what the stage begins with: the embedding, or the stage before has made it
  T final_in_TD;     // final_norm(h)
  T final_rrms_T;
  T loss_T;

  template <class Self, class Other, class Visit>
  static void for_each(Self& a, Other& b, const Visit& visit);
};

// A tensor of LayerActivations as planned.
struct LayerTensor {
  TensorSpec spec;
  GivenBackBy by = GivenBackBy::nothing;
  bool for_weights = false;  // the gradients of weights are made of it
};

// What else the gradients of a layer's weights are made of: gradients of its activations. Those of
// gate_up and dense_gate_up take the place of these in LayerActivations.
template <class T>
struct LayerGradients {
  T dattention_out_TD;  // before the post norm
  T dqkv_TCH;           // before the rotary embedding
  T dexpert_out_RD;
  T ddense_out_TD;

  template <class Self, class Other, class Visit>
  static void for_each(Self& a, Other& b, const Visit& visit);
};

// What is needed once, by all micro-batches, layers and the head in turn.
template <class T>
struct SharedActivations {
  T rope_table_SH;
  T expert_out_RD;  // forward: before the sum over a token's experts; backward: its gradient
  T dense_out_TD;   // as above, of the dense FFN
  T permute_counts_PE;
  // Where tensor ranks share the work of a token, else absent: see csrc/model/regions.h.
  T whole_TD;
  T partial_TD;
  T routed_in_TD;
  T routed_out_TD;
  // Where an expert's width is cut: each choice once for each piece.
  T spread_experts_TK;
  T spread_gates_TK;
  // Where experts lie on several ranks: rows as this rank sends and as it receives them.
  T sent_RD;
  T sent_gates_R1;
  T received_RD;
  T sent_offsets_PE1;  // of each of these ranks, its layer's offsets_E1
  // The same, of a forward pass beside a backward pass.
  T forward_sent_RD;
  T forward_sent_gates_R1;
  T forward_received_RD;
  T logits_CV;         // of head_chunk tokens, before the multiplier; their gradient after it
  T capped_logits_CV;  // of inference alone
  T row_logits_V;      // the same, of one token and the whole vocabulary where that is cut
  // Where the vocabulary is cut: log-sum-exp and target's logit of this rank's columns, of each
  // rank's, and of all columns.
  T vocab_stats_2C;
  T vocab_stats_2PC;
  T vocab_joined_2C;
  // Where the tokens of a sequence lie on several ranks, by the way in which they come to each other's
  // keys. Gathered: keys and values, which are heads [0, G) and [G, 2G), by their numbers and by their
  // places. From all to all: some heads of the queries before them, and what attention makes of these.
  T numbered_keys_UCH;
  T keys_UCH;
  T numbered_out_UNH;
  T out_UNH;
  // In a ring: keys and values that are here and those on their way; outputs, or gradients of queries,
  // of the keys of each rank; the keys of a sequence that each has.
  T ring_keys_2TCH;
  T part_out_PTNH;
  T part_lse_PBNS;
  T part_keys_P;
  T stats;         // [2 + 2L, kStatWidth]: see Stat
  T step_scalars;  // [5, kStatWidth]: see StepScalar; of training alone

  template <class Self, class Other, class Visit>
  static void for_each(Self& a, Other& b, const Visit& visit);
};

// Scratch of the backward pass.
template <class T>
struct BackwardScratch {
  T dhidden_TD;     // gradient of the residual stream, in place from layer to layer
  T dbranch_TD;     // of a branch's output, before its post norm
  T dbranch_in_TD;  // of a branch's input, after its pre norm
  T dqkv_TCH;
  T dheads_TNH;
  T delta_BNS;
  // Where the tokens of a sequence lie on several ranks.
  T dkeys_UCH;              // as keys; in a ring those of this rank's keys, by who has found them
  T dout_UNH;               // as out
  T ring_dkeys_2TCH;        // as ring_keys
  T attention_workspace_W;  // u8; absent where no kernel asks for it
  T drows_RD;
  T dexpert_hidden_RF;
  T ddense_hidden_TF;
  T dgates_TK;
  T darrived_gates_R1;  // where experts lie on several ranks, as received and as sent
  T dsent_gates_R1;
  T dspread_gates_TK;  // before the sum over the pieces of an expert
  T drouter_logits_TE;
  T embedding_order_T;  // absent but where a stage has the embedding
  T norm_partial_PD;
  T next_norm_partial_PD;
  T router_partial_PED;
  T global_norm_partial_P;

  template <class Self, class Other, class Visit>
  static void for_each(Self& a, Other& b, const Visit& visit);
};

// What SharedActivations::stats holds: sums over the micro-batches of a step, on the device, read
// by the host once a step. The auxiliary losses have a value for each layer of the model, so that
// their sums over layers do not depend on which rank has which.
enum class Stat : std::uint8_t { loss, grad_norm, balance, z };
// Each value has a row of its own, because operands of ops are 16-byte aligned.
constexpr std::int64_t kStatWidth = 4;
// The rows of one of them in a model of so many layers, and in SharedActivations::stats.
Range stat_rows(Stat stat, std::int64_t num_layers);
Range stat_rows(Stat stat, const TensorView& stats);
// [1], of `layer` where there is one for each.
TensorView stat_view(const SharedActivations<TensorView>& shared,
                     Stat stat,
                     std::int64_t layer = 0);

// What SharedActivations::step_scalars holds: the factors of a step that ops read on the device, each
// in a row of its own as statistics are, written by the host once a step.
enum class StepScalar : std::uint8_t {
  target,        // [1], of the cross entropy of one target in the step's mean
  balance_mean,  // [1], of the balance loss of one sequence and layer in the step's mean
  z_mean,        // [1], of the z loss of one token and layer
  auxiliary,     // [2], dLoss/d(balance loss of one sequence), dLoss/d(z loss of one token)
  rates          // [3], of AdamW: learning rate and bias corrections
};
constexpr std::int64_t kNumStepScalars = 5;
std::int64_t step_scalar_row(StepScalar scalar);
TensorView step_scalar_view(const SharedActivations<TensorView>& shared, StepScalar scalar);

// Scratch rows that ops ask for in their headers. The plan does not see kernels;
// csrc/model/grok.cpp asserts that the two agree.
struct ScratchRows {
  static constexpr std::int64_t rmsnorm_partials = 264;
  static constexpr std::int64_t router_partials = 22;
  static constexpr std::int64_t permute_chunks = 128;
  static constexpr std::int64_t global_norm_partials = 1056;
};

// What attention_backward_workspace_bytes of kernels/attention asks for on a GPU of Hopper's kind,
// in bytes, whether or not there is one: a plan may be made on another machine than it is for.
// csrc/model/attention.cpp refuses to run with less. 0 where no kernel asks.
std::size_t attention_workspace_bytes(const Dims& dims, DType compute);

// How much of the forward pass is kept.
enum class Keep : std::uint8_t { all_layers, one_layer };  // for training; for inference

// A chunk of a rank, which is a stage of the model, and the micro-batches that it keeps.
struct ChunkActivations {
  StageLayers stage;
  std::int64_t num_slots = 1;  // micro-batches under way at a time; number b lies in b % num_slots
  // Of those, at most so many whose gradients of weights are still to be formed when those of the
  // inputs are there.
  std::int64_t num_pending = 0;
};

// The specs of a model's activations for micro-batches of dims.B x dims.S tokens.
struct ActivationPlan {
  Keep keep = Keep::all_layers;
  std::vector<ChunkActivations> chunks;
  Recompute recompute;  // the caller's choice, of training; all else is the same whatever it is
  LayerActivations<LayerTensor> layer;
  BatchActivations<TensorSpec> batch;  // of a stage with embedding and head
  SharedActivations<TensorSpec> shared;
  BackwardScratch<TensorSpec> backward;  // all absent for inference
  LayerGradients<TensorSpec> gradients;  // of a layer, where they are kept for its weights
  bool paired = false;                   // see allow_pairs

  BatchActivations<TensorSpec> batch_of(const StageLayers& stage) const;
  // Which of all slots, which lie chunk by chunk.
  std::size_t slot_of(std::int64_t chunk, std::int64_t micro_batch) const;
  std::size_t pending_of(std::int64_t chunk, std::int64_t micro_batch) const;
  // What layers share a place for, computed again by one after the other.
  RecomputeGroups computed_again() const;

  // Of all slots: `batch`, and of `layer` what every layer keeps; and of what is pending.
  std::size_t activation_bytes() const;
  // Of `shared`, `backward`, and of `layer` what is computed again, in one place for all layers;
  // with pairs in one more, for those of a forward pass beside a backward pass.
  std::size_t workspace_bytes() const;
  // Of these, what ranks that share a sequence out have of each other's keys, and their gradients.
  std::size_t keys_bytes() const;

 private:
  std::size_t place_of(std::int64_t ChunkActivations::*count,
                       std::int64_t chunk,
                       std::int64_t micro_batch) const;
};

// `stages` are the chunks of a rank; each keeps one micro-batch until the caller says otherwise.
ActivationPlan plan_activations(const Dims& dims,
                                DType compute,
                                Keep keep,
                                Device device,
                                const std::vector<StageLayers>& stages);
// Of a whole model.
ActivationPlan plan_activations(const Dims& dims, DType compute, Keep keep, Device device);

// Makes room for a forward pass beside a backward pass: for what each has of its own while the
// other computes. REQUIRES: of training, experts on several ranks.
void allow_pairs(ActivationPlan& plan);

// The tensors of one micro-batch in one chunk.
struct Slot {
  StageLayers stage;
  std::int64_t first_layer = 0;  // the place of the stage's first layer among those of this rank
  BatchActivations<TensorView> batch;
  // A layer each; the same one for inference. What a layer computes again lies where all layers of
  // all slots have it.
  std::vector<LayerActivations<TensorView>> layers;
};

// What a stage keeps of a micro-batch from the gradients of its inputs to those of its weights,
// beside what lies in its slot: of each layer.
struct PendingWeights {
  struct Layer {
    // Those alone that are computed again, which all layers share a place for otherwise.
    LayerActivations<TensorView> again;
    LayerGradients<TensorView> gradients;
  };
  std::vector<Layer> layers;
};

// Places for a layer's gradients in the scratch of the backward pass, where the weights' are formed
// with the inputs'.
LayerGradients<TensorView> gradients_in_scratch(const SharedActivations<TensorView>& shared,
                                                const BackwardScratch<TensorView>& scratch);

// The views of an ActivationPlan, taken from two arenas of its sizes.
struct Activations {
  std::vector<Slot> slots;              // by ActivationPlan::slot_of
  std::vector<PendingWeights> pending;  // by ActivationPlan::pending_of
  // By layer of this rank, of a forward pass beside a backward pass: those of its tensors that are
  // computed again.
  std::vector<LayerActivations<TensorView>> forward_places;
  Recompute recompute;
  SharedActivations<TensorView> shared;
  BackwardScratch<TensorView> backward;
};

Activations allocate_activations(const ActivationPlan& plan, Arena& activations, Arena& workspace);

template <class T>
template <class Self, class Other, class Visit>
void LayerActivations<T>::for_each(Self& a, Other& b, const Visit& visit) {
  visit(a.attention_in_TD, b.attention_in_TD);
  visit(a.attention_in_rrms_T, b.attention_in_rrms_T);
  visit(a.qkv_TCH, b.qkv_TCH);
  visit(a.heads_TNH, b.heads_TNH);
  visit(a.lse_BNS, b.lse_BNS);
  visit(a.attention_out_TD, b.attention_out_TD);
  visit(a.attention_out_rrms_T, b.attention_out_rrms_T);
  visit(a.residual_TD, b.residual_TD);
  visit(a.moe_in_TD, b.moe_in_TD);
  visit(a.moe_in_rrms_T, b.moe_in_rrms_T);
  visit(a.router_logits_TE, b.router_logits_TE);
  visit(a.router_probs_TE, b.router_probs_TE);
  visit(a.gates_TK, b.gates_TK);
  visit(a.experts_TK, b.experts_TK);
  visit(a.counts_BE, b.counts_BE);
  visit(a.probs_sum_BE, b.probs_sum_BE);
  visit(a.valid_B, b.valid_B);
  visit(a.balance_B, b.balance_B);
  visit(a.z_T, b.z_T);
  visit(a.slot_TK, b.slot_TK);
  visit(a.source_R, b.source_R);
  visit(a.offsets_E1, b.offsets_E1);
  visit(a.rows_RD, b.rows_RD);
  visit(a.arrived_gates_R1, b.arrived_gates_R1);
  visit(a.arrival_slot_R1, b.arrival_slot_R1);
  visit(a.arrival_source_R, b.arrival_source_R);
  visit(a.arrival_offsets_E1, b.arrival_offsets_E1);
  visit(a.gate_up_R2F, b.gate_up_R2F);
  visit(a.expert_hidden_RF, b.expert_hidden_RF);
  visit(a.dense_gate_up_TF, b.dense_gate_up_TF);
  visit(a.dense_hidden_TF, b.dense_hidden_TF);
  visit(a.moe_out_TD, b.moe_out_TD);
  visit(a.moe_out_rrms_T, b.moe_out_rrms_T);
  visit(a.out_TD, b.out_TD);
}

template <class T>
template <class Self, class Other, class Visit>
void LayerGradients<T>::for_each(Self& a, Other& b, const Visit& visit) {
  visit(a.dattention_out_TD, b.dattention_out_TD);
  visit(a.dqkv_TCH, b.dqkv_TCH);
  visit(a.dexpert_out_RD, b.dexpert_out_RD);
  visit(a.ddense_out_TD, b.ddense_out_TD);
}

template <class T>
template <class Self, class Other, class Visit>
void BatchActivations<T>::for_each(Self& a, Other& b, const Visit& visit) {
  visit(a.tokens_T, b.tokens_T);
  visit(a.targets_T, b.targets_T);
  visit(a.position_T, b.position_T);
  visit(a.valid_T, b.valid_T);
  visit(a.place_T, b.place_T);
  visit(a.key_valid_U, b.key_valid_U);
  visit(a.key_position_U, b.key_position_U);
  visit(a.key_place_U, b.key_place_U);
  visit(a.key_number_U, b.key_number_U);
  visit(a.key_of_number_U, b.key_of_number_U);
  visit(a.routed_valid_T, b.routed_valid_T);
  visit(a.hidden_TD, b.hidden_TD);
  visit(a.final_in_TD, b.final_in_TD);
  visit(a.final_rrms_T, b.final_rrms_T);
  visit(a.loss_T, b.loss_T);
}

template <class T>
template <class Self, class Other, class Visit>
void SharedActivations<T>::for_each(Self& a, Other& b, const Visit& visit) {
  visit(a.rope_table_SH, b.rope_table_SH);
  visit(a.expert_out_RD, b.expert_out_RD);
  visit(a.dense_out_TD, b.dense_out_TD);
  visit(a.permute_counts_PE, b.permute_counts_PE);
  visit(a.whole_TD, b.whole_TD);
  visit(a.partial_TD, b.partial_TD);
  visit(a.routed_in_TD, b.routed_in_TD);
  visit(a.routed_out_TD, b.routed_out_TD);
  visit(a.spread_experts_TK, b.spread_experts_TK);
  visit(a.spread_gates_TK, b.spread_gates_TK);
  visit(a.sent_RD, b.sent_RD);
  visit(a.sent_gates_R1, b.sent_gates_R1);
  visit(a.received_RD, b.received_RD);
  visit(a.sent_offsets_PE1, b.sent_offsets_PE1);
  visit(a.forward_sent_RD, b.forward_sent_RD);
  visit(a.forward_sent_gates_R1, b.forward_sent_gates_R1);
  visit(a.forward_received_RD, b.forward_received_RD);
  visit(a.logits_CV, b.logits_CV);
  visit(a.capped_logits_CV, b.capped_logits_CV);
  visit(a.row_logits_V, b.row_logits_V);
  visit(a.vocab_stats_2C, b.vocab_stats_2C);
  visit(a.vocab_stats_2PC, b.vocab_stats_2PC);
  visit(a.vocab_joined_2C, b.vocab_joined_2C);
  visit(a.numbered_keys_UCH, b.numbered_keys_UCH);
  visit(a.keys_UCH, b.keys_UCH);
  visit(a.numbered_out_UNH, b.numbered_out_UNH);
  visit(a.out_UNH, b.out_UNH);
  visit(a.ring_keys_2TCH, b.ring_keys_2TCH);
  visit(a.part_out_PTNH, b.part_out_PTNH);
  visit(a.part_lse_PBNS, b.part_lse_PBNS);
  visit(a.part_keys_P, b.part_keys_P);
  visit(a.stats, b.stats);
  visit(a.step_scalars, b.step_scalars);
}

template <class T>
template <class Self, class Other, class Visit>
void BackwardScratch<T>::for_each(Self& a, Other& b, const Visit& visit) {
  visit(a.dhidden_TD, b.dhidden_TD);
  visit(a.dbranch_TD, b.dbranch_TD);
  visit(a.dbranch_in_TD, b.dbranch_in_TD);
  visit(a.dqkv_TCH, b.dqkv_TCH);
  visit(a.dheads_TNH, b.dheads_TNH);
  visit(a.delta_BNS, b.delta_BNS);
  visit(a.dkeys_UCH, b.dkeys_UCH);
  visit(a.dout_UNH, b.dout_UNH);
  visit(a.ring_dkeys_2TCH, b.ring_dkeys_2TCH);
  visit(a.attention_workspace_W, b.attention_workspace_W);
  visit(a.drows_RD, b.drows_RD);
  visit(a.dexpert_hidden_RF, b.dexpert_hidden_RF);
  visit(a.ddense_hidden_TF, b.ddense_hidden_TF);
  visit(a.dgates_TK, b.dgates_TK);
  visit(a.darrived_gates_R1, b.darrived_gates_R1);
  visit(a.dsent_gates_R1, b.dsent_gates_R1);
  visit(a.dspread_gates_TK, b.dspread_gates_TK);
  visit(a.drouter_logits_TE, b.drouter_logits_TE);
  visit(a.embedding_order_T, b.embedding_order_T);
  visit(a.norm_partial_PD, b.norm_partial_PD);
  visit(a.next_norm_partial_PD, b.next_norm_partial_PD);
  visit(a.router_partial_PED, b.router_partial_PED);
  visit(a.global_norm_partial_P, b.global_norm_partial_P);
}

}  // namespace memphis
