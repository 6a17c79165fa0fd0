// SPDX-License-Identifier: Apache-2.0
//
// The work of a config's plan: that of its description, with what the plan computes again and what its
// operations send.
#include <algorithm>
#include <utility>

#include "csrc/plan/communication.h"
#include "csrc/plan/recompute.h"
#include "csrc/plan/run_work.h"
#include "csrc/plan/stage_costs.h"

namespace memphis {
namespace {

// Exchanges of a plan's operations, by the pass of a layer that needs them.
class Operations {
 public:
  Operations(const Config& config,
             DType compute,
             const Mesh& mesh,
             std::int64_t rank,
             const TrainingPlan& plan)
      : groups_(planned_groups(config.model, mesh, rank)),
        experts_(mesh.group(Axis::expert_ranks, rank)),
        each_micro_batch_(plan.parameters.num_sum_elements > 0),
        operations_(step_operations(config, compute, plan)) {}

  // Puts them into `work`, in place of those that are there. Nothing where `layer` has none here.
  bool take_layer(int layer, LayerWork& work) const {
    std::vector<Exchange> forward;
    std::vector<Exchange> again;
    std::vector<Exchange> inputs;
    std::vector<Exchange> weights;
    bool there = false;
    std::vector<Exchange>* to = nullptr;
    std::vector<Exchange> waiting;  // weights that the next work needs
    for (const StepOperation& each : operations_) {
      if (each.micro_batch > 0) {
        continue;
      }
      if (each.micro_batch < 0) {
        break;
      }
      if (!each.moves()) {
        to = nullptr;
        if (each.layer == layer && each.kind != OperationKind::release) {
          there = true;
          to = each.kind == OperationKind::forward            ? &forward
               : each.kind == OperationKind::recompute        ? &again
               : each.kind == OperationKind::backward_weights ? &weights
                                                              : &inputs;
          to->insert(to->end(), waiting.begin(), waiting.end());
          waiting.clear();
        }
        continue;
      }
      if (each.layer != layer) {
        continue;
      }
      if (each.kind == OperationKind::gather) {
        add(each, ExchangeKind::weights, waiting);
      } else if (each.kind == OperationKind::reduce) {
        if (each_micro_batch_) {
          add(each, ExchangeKind::weights, weights);
        }
      } else if (to != nullptr) {
        add(each, kind_of(each), *to);
      }
    }
    if (there) {
      work.forward.exchanges = std::move(forward);
      work.again.exchanges = std::move(again);
      work.backward_inputs.exchanges = std::move(inputs);
      work.backward_weights.exchanges = std::move(weights);
    }
    return there;
  }

  void take_step(RunWork& work) const {
    work.reductions.clear();
    work.gathers.clear();
    for (const StepOperation& each : operations_) {
      if (!each.moves()) {
        continue;
      }
      const bool behind = each.micro_batch < 0;
      if (each.kind == OperationKind::reduce && (behind || !each_micro_batch_)) {
        add(each, ExchangeKind::weights, work.reductions);
      } else if (each.kind == OperationKind::gather && behind) {
        add(each, ExchangeKind::weights, work.gathers);
      } else if (behind) {
        add(each, ExchangeKind::numbers, work.reductions);
      }
    }
  }

 private:
  static ExchangeKind kind_of(const StepOperation& operation) {
    return operation.group == name_of(Axis::tensor)         ? ExchangeKind::tensor
           : operation.group == name_of(Axis::context)      ? ExchangeKind::context
           : operation.group == name_of(Axis::expert_ranks) ? ExchangeKind::rows
                                                            : ExchangeKind::numbers;
  }
  void add(const StepOperation& operation, ExchangeKind kind, std::vector<Exchange>& to) const {
    const auto found = std::find_if(groups_.begin(), groups_.end(), [&](const PlannedGroup& one) {
      return one.name == operation.group;
    });
    // What is no group of the device is of the experts' ranks, in host memory.
    const RankGroup ranks = found != groups_.end() ? found->ranks : experts_;
    if (ranks.count > 1) {
      to.push_back({.kind = kind,
                    .pattern = operation.pattern,
                    .bytes = static_cast<double>(operation.bytes),
                    .group = ranks,
                    .beside = operation.beside});
    }
  }

  std::vector<PlannedGroup> groups_;
  RankGroup experts_;
  bool each_micro_batch_;
  std::vector<StepOperation> operations_;
};

// The products of a layer's forward pass, in the order in which run_work(RunDescription) adds them.
enum ProductOfLayer : std::size_t {
  kQkv,
  kAttentionOut,
  kExpertsUp,
  kExpertsDown,
  kDenseUp,
  kDenseDown
};

void add_again(const Config& config,
               DType compute,
               const RecomputeGroups& groups,
               LayerWork& work) {
  work.again = {};
  if (!groups.any()) {
    return;
  }
  const std::vector<Product>& products = work.forward.products;
  const auto repeat = [&](std::size_t index) {
    if (index < products.size()) {
      work.again.products.push_back(products[index]);
    }
  };
  if (groups.block) {
    repeat(kQkv);
    repeat(kAttentionOut);
  }
  if (groups.block || groups.experts) {
    repeat(kExpertsUp);
    repeat(kDenseUp);
    work.again.starts = work.forward.starts;
  }
  if (groups.block || groups.attention) {
    work.again.scores = work.forward.scores;
  }
  const std::int64_t S = config.batch.sequence_length;
  work.again.streams = recompute_cost_of_layer(config.model, S, compute, groups).bytes *
                       static_cast<double>(config.batch.micro_batch * S) /
                       static_cast<double>(config.parallel.tensor * config.parallel.context);
}

// A product that is alone is one for each of `count` chunks of tokens: forward all but those of experts,
// and of the gradients of inputs those whose output's are gathered.
void cut_products(double count, LayerWork& work) {
  const auto cut = [&](PassWork& pass, ProductOfLayer index) {
    if (index < pass.products.size()) {
      Product& product = pass.products[index];
      product.M /= count;
      product.count *= count;
      product.together = false;
    }
  };
  for (const ProductOfLayer index : {kQkv, kAttentionOut, kDenseUp, kDenseDown}) {
    cut(work.forward, index);
  }
  for (const ProductOfLayer index : {kAttentionOut, kDenseDown}) {
    cut(work.backward_inputs, index);
  }
}

}  // namespace

RunWork run_work(const Config& config, DType compute, const Mesh& mesh, const StagePlans& plans) {
  const TrainingPlan& plan = plans.largest;
  RunDescription run = describe_run(config, compute, mesh.num_ranks());
  run.techniques.expert_overlap = plan.overlaps_experts;
  RunWork work = run_work(run, &plan.schedule);
  const Recompute& recompute = plan.activations.recompute;
  // Layers differ in what is computed again alone: the first ones, and the others.
  work.kinds.resize(1);
  cut_products(static_cast<double>(plan.dims.num_chunks(plan.dims.tensor_chunks)),
               work.kinds.front());
  work.kinds.push_back(work.kinds.front());
  add_again(config, compute, recompute.groups, work.kinds[0]);
  add_again(config, compute, recompute.rest, work.kinds[1]);
  for (std::size_t layer = 0; layer < work.kind_of_layer.size(); ++layer) {
    work.kind_of_layer[layer] = static_cast<std::int64_t>(layer) < recompute.num_layers ? 0 : 1;
  }
  work.layout = stage_layout(config.model, config.parallel);

  const std::int64_t rank = mesh.at(Axis::pipeline, plans.largest_rank, 0);
  const Operations operations(config, compute, mesh, rank, plan);
  for (std::size_t kind = 0; kind < work.kinds.size(); ++kind) {
    // Of this kind, one in the middle: where layers take turns, the first and the last of a pass lie
    // there already.
    std::vector<int> layers;
    for (const ChunkActivations& chunk : plan.activations.chunks) {
      for (std::int64_t layer = chunk.stage.layers.begin; layer < chunk.stage.layers.end();
           ++layer) {
        if (work.kind_of_layer[static_cast<std::size_t>(layer)] == kind) {
          layers.push_back(static_cast<int>(layer));
        }
      }
    }
    if (!layers.empty()) {
      operations.take_layer(layers[layers.size() / 2], work.kinds[kind]);
    }
  }
  operations.take_layer(static_cast<int>(plan.dims.L), work.head);
  operations.take_step(work);
  return work;
}

}  // namespace memphis
