// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/step_cost.h"

#include <algorithm>

#include <spdlog/fmt/fmt.h>

#include "csrc/plan/communication.h"
#include "csrc/plan/flops.h"
#include "csrc/plan/recompute.h"
#include "csrc/plan/stage_costs.h"
#include "csrc/plan/step_operations.h"

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

  // All that the rank's layers are made of, whoever keeps it.
  double weights = 0;
  for (const Segment& segment : plan.parameters.segments) {
    weights +=
        static_cast<double>(segment.num_elements) * static_cast<double>(size_of(segment.dtype));
  }
  const double gradients = static_cast<double>(plan.parameters.num_elements) *
                           static_cast<double>(size_of(accumulation_dtype(compute)));
  cost.price += static_cast<double>(plan.num_micro_batches) * (3 * weights + 2 * gradients) *
                kFlopsOfMemoryByte / of_rank;

  Traffic traffic;
  const std::vector<PlannedGroup> groups = planned_groups(config.model, mesh, rank);
  for (const StepOperation& operation : step_operations(config, compute, plan)) {
    const auto group = std::find_if(groups.begin(), groups.end(), [&](const PlannedGroup& one) {
      return one.name == operation.group;
    });
    if (group != groups.end()) {  // counts of rows are in host memory
      cost.messages += operation.kind == OperationKind::send ? 1 : 0;
      traffic.add(operation.sent_bytes(group->ranks.count), group->ranks);
    }
  }
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
