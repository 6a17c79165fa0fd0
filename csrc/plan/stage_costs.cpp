// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/stage_costs.h"

#include <algorithm>

#include "csrc/plan/flops.h"

namespace memphis {
namespace {

PassFlops flops_of(const StageLayers& stage, const MicroBatchFlops& flops) {
  PassFlops result;
  if (stage.embedding) {
    result += flops.embedding;
  }
  for (std::int64_t layer = stage.layers.begin; layer < stage.layers.end(); ++layer) {
    result += flops.layers[static_cast<std::size_t>(layer)];
  }
  if (stage.head) {
    result += flops.head;
  }
  return result;
}

}  // namespace

PassFlops& PassFlops::operator+=(const PassFlops& other) {
  forward += other.forward;
  backward_inputs += other.backward_inputs;
  backward_weights += other.backward_weights;
  return *this;
}

MicroBatchFlops micro_batch_flops(const ModelConfig& model,
                                  const BatchConfig& batch,
                                  DType compute,
                                  const Recompute& recompute) {
  const std::int64_t S = batch.sequence_length;
  const auto tokens = static_cast<double>(batch.micro_batch * S);
  const ForwardFlops of_token = forward_flops_per_token(model, S);
  const double matrices = tokens * of_token.matrices;
  const double scores = tokens * of_token.scores;
  MicroBatchFlops result;
  for (std::int64_t layer = 0; layer < model.num_layers; ++layer) {
    const double again =
        tokens * recompute_cost_of_layer(model, S, compute, recompute.of_layer(layer)).flops;
    result.layers.push_back({.forward = matrices + scores,
                             .backward_inputs = matrices + 2 * scores + again,
                             .backward_weights = matrices});
  }
  result.head.backward_inputs = 3 * tokens * of_token.head;
  return result;
}

LayerCosts layer_costs(const MicroBatchFlops& flops) {
  LayerCosts costs{.layers = {}, .embedding = flops.embedding.total(), .head = flops.head.total()};
  for (const PassFlops& layer : flops.layers) {
    costs.layers.push_back(layer.total());
  }
  return costs;
}

PipelineCosts pipeline_costs(const StageLayout& layout, const MicroBatchFlops& flops) {
  PipelineCosts costs;
  for (const StageLayers& stage : layout) {
    const PassFlops of_stage = flops_of(stage, flops);
    costs.stages.push_back({.forward = of_stage.forward,
                            .backward_inputs = of_stage.backward_inputs,
                            .backward_weights = of_stage.backward_weights,
                            .activation = static_cast<double>(stage.layers.count)});
  }
  return costs;
}

PipelineCosts evened(const PipelineCosts& costs) {
  StageCost mean{.forward = 0, .backward_inputs = 0, .backward_weights = 0, .activation = 0};
  const auto count = static_cast<double>(costs.stages.size());
  for (const StageCost& stage : costs.stages) {
    mean.forward += stage.forward / count;
    mean.backward_inputs += stage.backward_inputs / count;
    mean.backward_weights += stage.backward_weights / count;
    mean.activation += stage.activation / count;
  }
  return {.stages = std::vector<StageCost>(costs.stages.size(), mean), .message = costs.message};
}

LayoutPrice price(const StageLayout& layout,
                  const MicroBatchFlops& flops,
                  const PipelineSchedule& schedule) {
  const std::vector<double> ranks = rank_costs(
      layout, layer_costs(flops), placement_of(schedule.shape.kind), schedule.shape.num_ranks);
  double mean = 0;
  for (const double rank : ranks) {
    mean += rank / static_cast<double>(ranks.size());
  }
  const PipelineSimulation simulation = simulate(schedule, pipeline_costs(layout, flops));
  return {.imbalance = *std::max_element(ranks.begin(), ranks.end()) / mean,
          .bubble_share = simulation.bubble_share,
          .makespan = simulation.makespan};
}

std::optional<StageLayout> better_layout(const StageLayout& layout,
                                         const MicroBatchFlops& flops,
                                         const PipelineSchedule& schedule) {
  constexpr double kRounding = 1e-9;  // times in it are sums in another order
  const PipelineShape& shape = schedule.shape;
  const LayerCosts costs = layer_costs(flops);
  std::optional<StageLayout> best;
  double least = price(layout, flops, schedule).makespan * (1 - kRounding);
  // The least largest rank is not always the least time: its stages may be more unlike, and wait for
  // each other.
  for (StageLayout& candidate : std::vector<StageLayout>{
           balance_ranks(costs, placement_of(shape.kind), shape.num_ranks, shape.num_chunks),
           balance_stages(costs, shape.num_stages())}) {
    const double makespan = price(candidate, flops, schedule).makespan;
    if (makespan < least) {
      least = makespan;
      best = std::move(candidate);
    }
  }
  return best;
}

}  // namespace memphis
