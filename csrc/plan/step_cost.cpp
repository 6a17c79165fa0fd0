// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/step_cost.h"

#include <algorithm>

#include <spdlog/fmt/fmt.h>

#include "csrc/plan/flops.h"
#include "csrc/plan/recompute.h"
#include "csrc/plan/stage_costs.h"

namespace memphis {
namespace {

constexpr double kFlopsPerSecond = 989e12;
constexpr double kFlopsOfMemoryByte = kFlopsPerSecond / 3.35e12;
constexpr double kFlopsOfNearByte = kFlopsPerSecond / 450e9;
constexpr double kFlopsOfFarByte = kFlopsPerSecond / 50e9;

// Of a rank in a step.
struct Traffic {
  double bytes = 0;
  double flops = 0;  // as much work would take as long

  void add(double sent, const RankGroup& group) {
    bytes += sent;
    flops += sent * (lies_on_one_machine(group) ? kFlopsOfNearByte : kFlopsOfFarByte);
  }
};

// Of the tensors that `group` gathers or sums a piece each of, what a rank sends of the whole.
double sent_share(const RankGroup& group) {
  return static_cast<double>(group.count - 1) / static_cast<double>(group.count);
}

// The layers of a rank, and those of them that whole blocks are computed again of.
struct LayerCount {
  double all = 0;
  double blocks = 0;
  bool embedding = false;
  bool head = false;
};

LayerCount count_layers(const ActivationPlan& activations) {
  LayerCount count;
  for (const ChunkActivations& chunk : activations.chunks) {
    const Range& layers = chunk.stage.layers;
    count.all += static_cast<double>(layers.count);
    for (std::int64_t layer = layers.begin; layer < layers.end(); ++layer) {
      count.blocks += activations.recompute.of_layer(layer).block ? 1 : 0;
    }
    count.embedding = count.embedding || chunk.stage.embedding;
    count.head = count.head || chunk.stage.head;
  }
  return count;
}

// Over the ranks that share the work of a token. A gather or a scattered sum moves the whole once,
// a sum that all have moves it twice. A layer's attention, and its dense FFN, have two of them
// forward and three backward, a recomputed block the first two again; the embedding is summed and
// its gradient gathered; the head gathers its input for each of two passes and sums its gradient.
void add_tensor(Traffic& traffic,
                const TrainingPlan& plan,
                DType compute,
                const RankGroup& group,
                const LayerCount& layers) {
  const Dims& d = plan.dims;
  const double whole = static_cast<double>(d.T * d.D) * static_cast<double>(size_of(compute));
  const double branches = d.local_dense_F > 0 ? 2 : 1;
  // Without split sequences sums go to all, and what each rank has routed is gathered as well.
  const double forward = d.split_sequences ? 2 * branches : 2 * branches + 1;
  const double backward = d.split_sequences ? 3 * branches : 2 * branches + 1;
  const double ends = (layers.embedding ? 2 : 0) + (layers.head ? 3 : 0);
  const double times = layers.all * (forward + backward) + layers.blocks * forward + ends;
  traffic.add(static_cast<double>(plan.num_micro_batches) * times * whole * sent_share(group),
              group);
}

// Rows go to their experts and back, forward and backward.
void add_rows(Traffic& traffic,
              const TrainingPlan& plan,
              DType compute,
              const RankGroup& group,
              const LayerCount& layers) {
  const Dims& d = plan.dims;
  const double rows = static_cast<double>(d.sent_R * d.D) * static_cast<double>(size_of(compute));
  const double times = 4 * layers.all + 2 * layers.blocks;
  traffic.add(static_cast<double>(plan.num_micro_batches) * times * rows * sent_share(group),
              group);
}

// Gradients in f32, as often as they are summed; weights, where ranks keep the optimizer's state of
// a piece each.
void add_replicas(Traffic& traffic,
                  const TrainingPlan& plan,
                  DType compute,
                  const Mesh& mesh,
                  std::int64_t rank) {
  const double sums =
      plan.share.shard_gradients ? static_cast<double>(plan.num_micro_batches) : 1.0;
  for (const Segment& segment : plan.parameters.segments) {
    const RankGroup group = mesh.group(segment.replicas, rank);
    const auto elements = static_cast<double>(segment.num_elements);
    const double gradient = elements * static_cast<double>(size_of(accumulation_dtype(compute)));
    const double weights = elements * static_cast<double>(size_of(segment.dtype));
    const double moved = segment.sharded() ? sums * gradient + weights : 2 * gradient;
    traffic.add(moved * sent_share(group), group);
  }
}

}  // namespace

StepCost step_cost(const Config& config, DType compute, const Mesh& mesh, const StagePlans& plans) {
  const TrainingPlan& plan = plans.largest;
  const std::int64_t rank = mesh.at(Axis::pipeline, plans.largest_rank, 0);
  const Recompute& recompute = plan.activations.recompute;
  const std::int64_t S = config.batch.sequence_length;
  const double of_token = model_flops_per_token(config.model, S).halved;
  const double of_rank = of_token * static_cast<double>(config.batch.global_batch * S) /
                         static_cast<double>(mesh.num_ranks());
  StepCost cost{.num_micro_batches = plan.num_micro_batches};

  const RecomputeCost again = recompute_cost(config.model, S, compute, recompute);
  cost.again_share = again.flops / of_token;
  cost.price += again.weight() / of_token;

  const PipelineShape& shape = plan.schedule.shape;
  if (shape.num_stages() > 1) {
    const LayoutPrice layout =
        price(stage_layout(config.model, config.parallel),
              micro_batch_flops(config.model, config.batch, compute, recompute),
              plan.schedule);
    cost.bubble_share = layout.bubble_share;
    // Of the time of all ranks, so much is idle: the work takes the rest.
    cost.price += (1 + cost.again_share) * layout.bubble_share / (1 - layout.bubble_share);
  }

  const double weights = static_cast<double>(plan.memory.weights_bytes);
  const double gradients = static_cast<double>(plan.parameters.num_elements) *
                           static_cast<double>(size_of(accumulation_dtype(compute)));
  cost.price += static_cast<double>(plan.num_micro_batches) * (3 * weights + 2 * gradients) *
                kFlopsOfMemoryByte / of_rank;

  Traffic traffic;
  const LayerCount layers = count_layers(plan.activations);
  add_tensor(traffic, plan, compute, mesh.group(Axis::tensor, rank), layers);
  if (plan.dims.exchange_rows) {
    add_rows(traffic, plan, compute, mesh.group(Axis::expert_ranks, rank), layers);
  }
  add_replicas(traffic, plan, compute, mesh, rank);
  for (const MessageQueue& queue : plan.schedule.queues) {
    if (queue.from_rank == plans.largest_rank) {
      cost.messages += static_cast<double>(queue.num_messages);
    }
  }
  traffic.add(cost.messages * static_cast<double>(plan.messages.message_TD.bytes()),
              mesh.group(Axis::pipeline, rank));
  cost.sent_bytes = traffic.bytes;
  cost.price += traffic.flops / of_rank;
  return cost;
}

std::string describe(const StepCost& cost) {
  std::string text = fmt::format("{} micro-batch{}, {:.2f} % of the model's FLOP again",
                                 cost.num_micro_batches,
                                 cost.num_micro_batches == 1 ? "" : "es",
                                 100 * cost.again_share);
  if (cost.messages > 0) {
    text += fmt::format(
        ", a bubble of {:.2f} % with {:.0f} messages", 100 * cost.bubble_share, cost.messages);
  }
  return text +
         fmt::format(", {} sent by a rank", human_bytes(static_cast<std::size_t>(cost.sent_bytes)));
}

}  // namespace memphis
