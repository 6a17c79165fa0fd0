// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/activations.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "csrc/core/error.h"
#include "csrc/core/round.h"

namespace memphis {
namespace {

template <template <class> class Group>
std::size_t group_bytes(const Group<TensorSpec>& specs) {
  std::size_t bytes = 0;
  Group<TensorSpec>::for_each(specs, specs, [&](const TensorSpec& spec, const TensorSpec&) {
    bytes += spec.present() ? arena_bytes(spec) : 0;
  });
  return bytes;
}

// Of the tensors of a layer that `counts` is true for.
template <class Counts>
std::size_t layer_bytes(const LayerActivations<LayerTensor>& layer, const Counts& counts) {
  std::size_t bytes = 0;
  LayerActivations<LayerTensor>::for_each(
      layer, layer, [&](const LayerTensor& tensor, const LayerTensor&) {
        bytes += tensor.spec.present() && counts(tensor) ? arena_bytes(tensor.spec) : 0;
      });
  return bytes;
}

template <template <class> class Group>
Group<TensorView> allocate(const Group<TensorSpec>& specs, Arena& arena) {
  Group<TensorView> views;
  Group<TensorSpec>::for_each(
      specs, views, [&](const TensorSpec& spec, TensorView& view) { view = arena.allocate(spec); });
  return views;
}

// Adds to `views` the tensors of a layer that `takes` is true for.
template <class Takes>
void allocate_layer(const LayerActivations<LayerTensor>& layer,
                    const Takes& takes,
                    Arena& arena,
                    LayerActivations<TensorView>& views) {
  LayerActivations<LayerTensor>::for_each(
      layer, views, [&](const LayerTensor& tensor, TensorView& view) {
        if (takes(tensor)) {
          view = arena.allocate(tensor.spec);
        }
      });
}

// Of `places` those that a layer computes again.
LayerActivations<TensorView> given_back(const LayerActivations<LayerTensor>& layer,
                                        const RecomputeGroups& groups,
                                        const LayerActivations<TensorView>& places) {
  LayerActivations<TensorView> views = places;
  LayerActivations<LayerTensor>::for_each(
      layer, views, [&](const LayerTensor& tensor, TensorView& view) {
        if (!gives_back(groups, tensor.by)) {
          view = {};
        }
      });
  return views;
}

}  // namespace

// The kernel takes bf16 heads of 128 in tiles of 64 queries and 128 keys. Where tiles of keys are
// few, those of all heads together, they are cut into slices of at least eight tiles of queries,
// which sum the keys' gradients in memory.
std::size_t attention_workspace_bytes(const Dims& d, DType compute) {
  constexpr std::int64_t kHeadWidth = 128;
  constexpr std::int64_t kQueries = 64;
  constexpr std::int64_t kKeys = 128;
  constexpr std::int64_t kItemsWanted = 528;
  constexpr std::int64_t kStepsOfSlice = 8;
  if (compute != DType::bf16 || d.H != kHeadWidth) {
    return 0;
  }
  constexpr std::int64_t kAligned = 16;
  const Dims::AttentionCall call = d.attention_call();
  const std::int64_t tiles_of_queries = round_up(call.S, kQueries) / kQueries;
  const std::int64_t query_tiles = d.B * tiles_of_queries;
  const std::int64_t key_tiles = d.B * (round_up(call.keys_S, kKeys) / kKeys);
  const bool sliced =
      call.G * key_tiles < kItemsWanted && call.N / call.G * tiles_of_queries / kStepsOfSlice > 1;

  // Gradients of queries in f32; of rows, four numbers, the first key, and a number for the tile.
  const std::int64_t dquery = query_tiles * call.N * kQueries * kHeadWidth * 4;
  const std::int64_t rows = query_tiles * call.N * round_up(kQueries * 5 * 4 + 4, kAligned);
  const std::int64_t sums = sliced ? key_tiles * call.G * 2 * kKeys * kHeadWidth * 4 : 0;
  // What tiles see, and whose turn it is.
  const std::int64_t seen =
      (query_tiles + key_tiles) * 16 + round_up(key_tiles * kKeys * 4, kAligned);
  const std::int64_t turns = round_up(query_tiles * call.N * 4, kAligned) +
                             round_up(key_tiles * call.G * 2 * 4, kAligned) + 16;
  return static_cast<std::size_t>(dquery + rows + sums + seen + turns);
}

namespace {

void plan_key_exchange(const Dims& d, DType compute, ActivationPlan& plan) {
  BatchActivations<TensorSpec>& batch = plan.batch;
  SharedActivations<TensorSpec>& shared = plan.shared;
  const TensorSpec of_keys_U = {{d.U}, DType::i32};
  batch.key_valid_U = {{d.U}, DType::u8};
  if (d.key_exchange == ContextExchange::ring) {
    const std::int64_t ranks = d.context().count;
    batch.place_T = {{d.T}, DType::i32};
    batch.key_place_U = of_keys_U;
    shared.ring_keys_2TCH = {{2, d.T, 2 * d.local_G, d.H}, compute};
    shared.part_out_PTNH = {{ranks, d.T, d.local_N, d.H}, compute};
    shared.part_lse_PBNS = {{ranks, d.B, d.local_N, d.S}, accumulation_dtype(compute)};
    shared.part_keys_P = {{ranks}, DType::i32};
    return;
  }
  const Dims::AttentionCall call = d.attention_call();
  batch.key_number_U = of_keys_U;
  batch.key_of_number_U = of_keys_U;
  if (d.key_exchange == ContextExchange::gather) {
    batch.place_T = {{d.T}, DType::i32};
    shared.keys_UCH = {{d.U, 2 * call.G, d.H}, compute};
  } else {
    batch.key_position_U = of_keys_U;
    shared.keys_UCH = {{d.U, call.N + 2 * call.G, d.H}, compute};
    shared.out_UNH = {{d.U, call.N, d.H}, compute};
    shared.numbered_out_UNH = shared.out_UNH;
  }
  shared.numbered_keys_UCH = shared.keys_UCH;
}

void plan_key_gradients(const Dims& d, DType compute, ActivationPlan& plan) {
  BackwardScratch<TensorSpec>& backward = plan.backward;
  if (d.key_exchange == ContextExchange::ring) {
    backward.dkeys_UCH = {{d.U, 2 * d.local_G, d.H}, compute};
    backward.ring_dkeys_2TCH = plan.shared.ring_keys_2TCH;
    return;
  }
  backward.dkeys_UCH = plan.shared.keys_UCH;
  backward.dout_UNH = plan.shared.out_UNH;
}

}  // namespace

ActivationPlan plan_activations(const Dims& d,
                                DType compute,
                                Keep keep,
                                Device device,
                                const std::vector<StageLayers>& stages) {
  const DType sums = accumulation_dtype(compute);
  ActivationPlan plan;
  plan.keep = keep;
  for (const StageLayers& stage : stages) {
    plan.chunks.push_back({.stage = stage});
  }

  using enum GivenBackBy;
  LayerActivations<LayerTensor>& layer = plan.layer;
  // The last word: whether gradients of weights are made of it.
  layer.attention_in_TD = {{{d.residual_T, d.D}, compute}, norm, true};
  layer.attention_in_rrms_T = {{{d.residual_T}, sums}};
  layer.qkv_TCH = {{{d.T, d.local_C, d.H}, compute}, block};
  layer.heads_TNH = {{{d.T, d.local_N, d.H}, compute}, attention, true};
  const Dims::AttentionCall call = d.attention_call();
  layer.lse_BNS = {{{d.B, call.N, call.S}, sums}};
  layer.attention_out_TD = {{{d.residual_T, d.D}, compute}, block};
  layer.attention_out_rrms_T = {{{d.residual_T}, sums}};
  layer.residual_TD = {{{d.residual_T, d.D}, compute}, block};
  layer.moe_in_TD = {{{d.residual_T, d.D}, compute}, norm};
  layer.moe_in_rrms_T = {{{d.residual_T}, sums}};
  layer.router_logits_TE = {{{d.routed_T, d.E}, sums}};
  layer.router_probs_TE = {{{d.routed_T, d.E}, sums}};
  layer.gates_TK = {{{d.routed_T, d.K}, sums}};
  layer.experts_TK = {{{d.routed_T, d.K}, DType::i32}};
  layer.counts_BE = {{{d.B, d.E}, DType::i32}};
  layer.probs_sum_BE = {{{d.B, d.E}, sums}};
  layer.valid_B = {{{d.B}, DType::i32}};
  layer.balance_B = {{{d.B}, sums}};
  layer.z_T = {{{d.routed_T}, sums}};
  layer.slot_TK = {{{d.routed_T, d.K * d.expert_pieces}, DType::i32}};
  layer.source_R = {{{d.sent_R}, DType::i32}};
  layer.offsets_E1 = {{{d.E * d.expert_pieces + 1}, DType::i32}};
  layer.rows_RD = {{{d.local_R, d.D}, compute},
                   d.exchange_rows ? block : norm,  // sent again, or copied
                   true};
  layer.gate_up_R2F = {{{d.local_R, 2 * d.local_F}, compute}, experts, true};
  layer.expert_hidden_RF = {{{d.local_R, d.local_F}, compute}, geglu, true};
  // A third of the experts' products, and rows on their way back, for the smallest of tensors.
  layer.moe_out_TD = {{{d.residual_T, d.D}, compute}};
  layer.moe_out_rrms_T = {{{d.residual_T}, sums}};
  layer.out_TD = {{{d.residual_T, d.D}, compute}};

  BatchActivations<TensorSpec>& batch = plan.batch;
  SharedActivations<TensorSpec>& shared = plan.shared;
  batch.tokens_T = {{d.T}, DType::i32};
  batch.targets_T = {{d.T}, DType::i32};
  batch.position_T = {{d.T}, DType::i32};
  batch.valid_T = {{d.T}, DType::u8};
  shared.rope_table_SH = {{d.whole_S, d.H}, sums};
  batch.hidden_TD = {{d.residual_T, d.D}, compute};
  shared.expert_out_RD = {{d.local_R, d.D}, compute};
  shared.permute_counts_PE = {{ScratchRows::permute_chunks, d.E * d.expert_pieces}, DType::i32};
  batch.final_in_TD = {{d.residual_T, d.D}, compute};
  batch.final_rrms_T = {{d.residual_T}, sums};
  shared.logits_CV = {{d.head_chunk, d.local_V.count}, compute};
  batch.loss_T = {{d.T}, sums};
  shared.stats = {{stat_rows(Stat::z, d.L).end(), kStatWidth}, sums};

  const bool inference = keep == Keep::one_layer;
  if (d.tensor_parallel) {
    batch.routed_valid_T = {{d.routed_T}, DType::u8};
    shared.partial_TD = {{d.T, d.D}, compute};
    if (d.split_sequences) {
      shared.whole_TD = {{d.T, d.D}, compute};
    } else {
      shared.routed_in_TD = {{d.routed_T, d.D}, compute};
      shared.routed_out_TD = {{d.routed_T, d.D}, compute};
    }
    const std::int64_t columns = d.pad_chunk(d.head_chunk);
    shared.vocab_stats_2C = {{2, columns}, sums};
    shared.vocab_stats_2PC = {{2, d.T / d.routed_T, columns}, sums};
    shared.vocab_joined_2C = {{2, columns}, sums};
  }
  if (d.exchange_keys) {
    plan_key_exchange(d, compute, plan);
  }
  if (d.expert_pieces > 1) {
    shared.spread_experts_TK = {{d.routed_T, d.K * d.expert_pieces}, DType::i32};
    shared.spread_gates_TK = {{d.routed_T, d.K * d.expert_pieces}, sums};
  }
  if (d.exchange_rows) {
    layer.arrived_gates_R1 = {{{d.local_R, 1}, sums}};
    layer.arrival_slot_R1 = {{{d.local_R, 1}, DType::i32}};
    layer.arrival_source_R = {{{d.local_R}, DType::i32}};
    layer.arrival_offsets_E1 = {{{d.local_E + 1}, DType::i32}};
    shared.sent_RD = {{d.sent_R, d.D}, compute};
    shared.sent_gates_R1 = {{d.sent_R, 1}, sums};
    shared.received_RD = {{d.local_R, d.D}, compute};
    shared.sent_offsets_PE1 = {{d.expert_ranks, d.E * d.expert_pieces + 1}, DType::i32};
  }
  if (d.local_dense_F > 0) {
    layer.dense_gate_up_TF = {{{d.T, 2 * d.local_dense_F}, compute}, experts, true};
    layer.dense_hidden_TF = {{{d.T, d.local_dense_F}, compute}, geglu, true};
    layer.moe_in_TD.for_weights = true;
    shared.dense_out_TD = {{d.residual_T, d.D}, compute};
  }
  if (inference) {
    shared.capped_logits_CV = {{d.head_chunk, d.local_V.count}, sums};
    if (d.tensor_parallel || d.exchange_keys || !stages.front().head || !stages.front().embedding) {
      shared.row_logits_V = {{d.V}, sums};
    }
    return plan;
  }

  shared.step_scalars = {{kNumStepScalars, kStatWidth}, sums};
  BackwardScratch<TensorSpec>& backward = plan.backward;
  backward.dhidden_TD = {{d.residual_T, d.D}, compute};
  backward.dbranch_TD = {{d.residual_T, d.D}, compute};
  backward.dbranch_in_TD = {{d.residual_T, d.D}, compute};
  backward.dqkv_TCH = {{d.T, d.local_C, d.H}, compute};
  backward.dheads_TNH = {{d.T, d.local_N, d.H}, compute};
  backward.delta_BNS = {{d.B, call.N, call.S}, sums};
  if (device == Device::cuda && attention_workspace_bytes(d, compute) > 0) {
    const std::size_t bytes = attention_workspace_bytes(d, compute);
    backward.attention_workspace_W = {{static_cast<std::int64_t>(bytes)}, DType::u8};
  }
  if (d.exchange_keys) {
    plan_key_gradients(d, compute, plan);
  }
  backward.drows_RD = {{d.local_R, d.D}, compute};
  backward.dexpert_hidden_RF = {{d.local_R, d.local_F}, compute};
  backward.dgates_TK = {{d.routed_T, d.K}, sums};
  backward.drouter_logits_TE = {{d.routed_T, d.E}, sums};
  if (std::any_of(stages.begin(), stages.end(), std::mem_fn(&StageLayers::embedding))) {
    backward.embedding_order_T = {{d.T}, DType::i32};
  }
  backward.norm_partial_PD = {{ScratchRows::rmsnorm_partials, d.D}, sums};
  backward.next_norm_partial_PD = backward.norm_partial_PD;
  backward.router_partial_PED = {{ScratchRows::router_partials, d.E, d.D}, sums};
  backward.global_norm_partial_P = {{ScratchRows::global_norm_partials}, DType::f64};
  if (d.exchange_rows) {
    backward.darrived_gates_R1 = {{d.local_R, 1}, sums};
    backward.dsent_gates_R1 = {{d.sent_R, 1}, sums};
  }
  if (d.expert_pieces > 1) {
    backward.dspread_gates_TK = {{d.routed_T, d.K * d.expert_pieces}, sums};
  }
  LayerGradients<TensorSpec>& gradients = plan.gradients;
  gradients.dattention_out_TD = {{d.residual_T, d.D}, compute};
  gradients.dqkv_TCH = {{d.T, d.local_C, d.H}, compute};
  gradients.dexpert_out_RD = {{d.local_R, d.D}, compute};
  if (d.local_dense_F > 0) {
    gradients.ddense_out_TD = {{d.residual_T, d.D}, compute};
    backward.ddense_hidden_TF = {{d.T, d.local_dense_F}, compute};
  }
  return plan;
}

void allow_pairs(ActivationPlan& plan) {
  require(plan.keep == Keep::all_layers && plan.shared.sent_RD.present(),
          "passes are paired in training, where rows are exchanged");
  plan.paired = true;
  SharedActivations<TensorSpec>& shared = plan.shared;
  shared.forward_sent_RD = shared.sent_RD;
  shared.forward_sent_gates_R1 = shared.sent_gates_R1;
  shared.forward_received_RD = shared.received_RD;
}

ActivationPlan plan_activations(const Dims& d, DType compute, Keep keep, Device device) {
  return plan_activations(d, compute, keep, device, stages_of_counts(d.L, {d.L}));
}

LayerGradients<TensorView> gradients_in_scratch(const SharedActivations<TensorView>& shared,
                                                const BackwardScratch<TensorView>& scratch) {
  return {.dattention_out_TD = scratch.dbranch_TD,
          .dqkv_TCH = scratch.dqkv_TCH,
          .dexpert_out_RD = shared.expert_out_RD,
          .ddense_out_TD = shared.dense_out_TD};
}

Range stat_rows(Stat stat, std::int64_t num_layers) {
  switch (stat) {
    case Stat::loss:
      return {.begin = 0, .count = 1};
    case Stat::grad_norm:
      return {.begin = 1, .count = 1};
    case Stat::balance:
      return {.begin = 2, .count = num_layers};
    case Stat::z:
      return {.begin = 2 + num_layers, .count = num_layers};
  }
  throw ContractError("there is no such statistic");
}

// Of the rows two are not of layers, which have two each.
Range stat_rows(Stat stat, const TensorView& stats) {
  return stat_rows(stat, (stats.dim(0) - stat_rows(Stat::balance, 0).begin) / 2);
}

TensorView stat_view(const SharedActivations<TensorView>& shared, Stat stat, std::int64_t layer) {
  TensorView view = shared.stats.rows(stat_rows(stat, shared.stats).begin + layer, 1);
  view.num_dims = 1;  // [1], the first of the row
  return view;
}

std::int64_t step_scalar_row(StepScalar scalar) {
  return static_cast<std::int64_t>(scalar);
}

TensorView step_scalar_view(const SharedActivations<TensorView>& shared, StepScalar scalar) {
  const auto width = [&]() -> std::int64_t {
    switch (scalar) {
      case StepScalar::target:
      case StepScalar::balance_mean:
      case StepScalar::z_mean:
        return 1;
      case StepScalar::auxiliary:
        return 2;
      case StepScalar::rates:
        return 3;
    }
    throw ContractError("there is no such scalar of a step");
  };
  TensorView view = shared.step_scalars.rows(step_scalar_row(scalar), 1);
  view.num_dims = 1;  // the first of the row
  view.dims[0] = width();
  return view;
}

BatchActivations<TensorSpec> ActivationPlan::batch_of(const StageLayers& stage) const {
  BatchActivations<TensorSpec> result = batch;
  if (!stage.embedding) {
    result.tokens_T = {};
  }
  if (!stage.head) {
    result.targets_T = {};
    result.final_in_TD = {};
    result.final_rrms_T = {};
    result.loss_T = {};
  }
  return result;
}

std::size_t ActivationPlan::slot_of(std::int64_t chunk, std::int64_t micro_batch) const {
  return place_of(&ChunkActivations::num_slots, chunk, micro_batch);
}

std::size_t ActivationPlan::pending_of(std::int64_t chunk, std::int64_t micro_batch) const {
  return place_of(&ChunkActivations::num_pending, chunk, micro_batch);
}

std::size_t ActivationPlan::place_of(std::int64_t ChunkActivations::*count,
                                     std::int64_t chunk,
                                     std::int64_t micro_batch) const {
  std::int64_t before = 0;
  for (std::int64_t i = 0; i < chunk; ++i) {
    before += chunks[static_cast<std::size_t>(i)].*count;
  }
  return static_cast<std::size_t>(before +
                                  micro_batch % (chunks[static_cast<std::size_t>(chunk)].*count));
}

// The first layers of the model compute most again.
RecomputeGroups ActivationPlan::computed_again() const {
  std::int64_t first = std::numeric_limits<std::int64_t>::max();
  for (const ChunkActivations& chunk : chunks) {
    if (chunk.stage.layers.count > 0) {
      first = std::min(first, chunk.stage.layers.begin);
    }
  }
  return first < std::numeric_limits<std::int64_t>::max() ? recompute.of_layer(first)
                                                          : RecomputeGroups{};
}

std::size_t ActivationPlan::activation_bytes() const {
  std::size_t bytes = 0;
  const auto kept_of = [&](std::int64_t index) {
    return layer_bytes(layer, [&](const LayerTensor& tensor) {
      return !gives_back(recompute.of_layer(index), tensor.by);
    });
  };
  const auto pending_of_layer = [&](std::int64_t index) {
    return group_bytes(gradients) + layer_bytes(layer, [&](const LayerTensor& tensor) {
             return tensor.for_weights && gives_back(recompute.of_layer(index), tensor.by);
           });
  };
  for (const ChunkActivations& chunk : chunks) {
    const Range& layers = chunk.stage.layers;
    // Layers are alike up to some layer, and from there on.
    const Range more = intersection(layers, {.begin = 0, .count = recompute.num_layers});
    const auto over_layers = [&](const auto& bytes_of) {
      return static_cast<std::size_t>(more.count) * bytes_of(0) +
             static_cast<std::size_t>(layers.count - more.count) * bytes_of(recompute.num_layers);
    };
    std::size_t of_slot = group_bytes(batch_of(chunk.stage));
    if (keep == Keep::all_layers) {
      of_slot += over_layers(kept_of);
    }
    bytes += static_cast<std::size_t>(chunk.num_slots) * of_slot +
             static_cast<std::size_t>(chunk.num_pending) * over_layers(pending_of_layer);
  }
  return bytes + (keep == Keep::one_layer ? kept_of(0) : 0);
}

std::size_t ActivationPlan::workspace_bytes() const {
  const RecomputeGroups again = computed_again();
  const std::size_t of_layer =
      layer_bytes(layer, [&](const LayerTensor& tensor) { return gives_back(again, tensor.by); });
  return group_bytes(shared) + group_bytes(backward) + (paired ? 2 : 1) * of_layer;
}

std::size_t ActivationPlan::keys_bytes() const {
  std::size_t bytes = 0;
  for (const TensorSpec* spec : {&shared.numbered_keys_UCH,
                                 &shared.keys_UCH,
                                 &shared.numbered_out_UNH,
                                 &shared.out_UNH,
                                 &shared.ring_keys_2TCH,
                                 &shared.part_out_PTNH,
                                 &shared.part_lse_PBNS,
                                 &shared.part_keys_P,
                                 &backward.dkeys_UCH,
                                 &backward.dout_UNH,
                                 &backward.ring_dkeys_2TCH}) {
    bytes += spec->present() ? arena_bytes(*spec) : 0;
  }
  return bytes;
}

Activations allocate_activations(const ActivationPlan& plan, Arena& activations, Arena& workspace) {
  Activations result;
  result.recompute = plan.recompute;
  const RecomputeGroups again = plan.computed_again();
  LayerActivations<TensorView> common;
  LayerActivations<TensorView> forward_common;
  for (LayerActivations<TensorView>* const places : {&common, &forward_common}) {
    if (places == &common || plan.paired) {
      allocate_layer(
          plan.layer,
          [&](const LayerTensor& tensor) { return gives_back(again, tensor.by); },
          workspace,
          *places);
    }
  }
  const auto allocate_kept = [&](std::int64_t layer, LayerActivations<TensorView>& views) {
    const RecomputeGroups& groups = plan.recompute.of_layer(layer);
    allocate_layer(
        plan.layer,
        [&](const LayerTensor& tensor) { return !gives_back(groups, tensor.by); },
        activations,
        views);
  };
  if (plan.keep == Keep::one_layer) {
    allocate_kept(0, common);
  }
  std::int64_t first_layer = 0;
  for (const ChunkActivations& chunk : plan.chunks) {
    const Range& layers = chunk.stage.layers;
    for (std::int64_t slot = 0; slot < chunk.num_slots; ++slot) {
      Slot& views = result.slots.emplace_back();
      views.stage = chunk.stage;
      views.first_layer = first_layer;
      views.batch = allocate(plan.batch_of(chunk.stage), activations);
      for (std::int64_t layer = layers.begin; layer < layers.end(); ++layer) {
        views.layers.push_back(common);
        if (plan.keep == Keep::all_layers) {
          allocate_kept(layer, views.layers.back());
        }
      }
    }
    first_layer += layers.count;
    for (std::int64_t layer = layers.begin; plan.paired && layer < layers.end(); ++layer) {
      result.forward_places.push_back(
          given_back(plan.layer, plan.recompute.of_layer(layer), forward_common));
    }
    for (std::int64_t i = 0; i < chunk.num_pending; ++i) {
      PendingWeights& pending = result.pending.emplace_back();
      for (std::int64_t layer = layers.begin; layer < layers.end(); ++layer) {
        PendingWeights::Layer& views = pending.layers.emplace_back();
        const RecomputeGroups& groups = plan.recompute.of_layer(layer);
        allocate_layer(
            plan.layer,
            [&](const LayerTensor& tensor) {
              return tensor.for_weights && gives_back(groups, tensor.by);
            },
            activations,
            views.again);
        views.gradients = allocate(plan.gradients, activations);
      }
    }
  }
  result.shared = allocate(plan.shared, workspace);
  result.backward = allocate(plan.backward, workspace);
  return result;
}

}  // namespace memphis
