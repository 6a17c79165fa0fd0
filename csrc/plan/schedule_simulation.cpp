// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/schedule_simulation.h"

#include <algorithm>
#include <cstddef>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/plan/schedule_replay.h"

namespace memphis {
namespace {

double duration(ActionKind kind, const StageCost& cost) {
  switch (kind) {
    case ActionKind::forward:
      return cost.forward;
    case ActionKind::backward:
      return cost.backward_inputs + cost.backward_weights;
    case ActionKind::backward_inputs:
      return cost.backward_inputs;
    case ActionKind::backward_weights:
      return cost.backward_weights;
  }
  return 0;
}

// Follows from the list alone, whatever takes how long.
void measure_peaks(const PipelineSchedule& schedule,
                   const std::vector<StageCost>& stages,
                   std::size_t rank,
                   RankSimulation& result) {
  double activations = 0;
  double pending = 0;
  for (const ScheduleStep& step : schedule.ranks[rank]) {
    if (step.kind != StepKind::compute) {
      continue;
    }
    const ActionKind kind = step.action.kind;
    const double unit = stages[static_cast<std::size_t>(step.action.stage)].activation;
    if (kind == ActionKind::forward) {
      activations += unit;
      result.peak_activations = std::max(result.peak_activations, activations);
    }
    if (kind == ActionKind::backward_inputs) {
      pending += unit;
      result.peak_pending_weights = std::max(result.peak_pending_weights, pending);
    }
    if (kind == ActionKind::backward_weights) {
      pending -= unit;
    }
    if (makes_weight_gradient(kind) || schedule.shape.forward_only) {
      activations -= unit;
    }
  }
}

// When a queue's messages are there, one entry a message.
struct QueueTimes {
  std::vector<double> made;
  std::vector<double> arrived;
  std::vector<double> used_up;
  double free = 0;  // when it can carry the next message
};

std::int64_t peak_of(const QueueTimes& times) {
  std::size_t used = 0;
  std::size_t peak = 0;
  for (std::size_t k = 0; k < times.made.size(); ++k) {
    while (times.used_up[used] < times.made[k]) {
      ++used;
    }
    peak = std::max(peak, k + 1 - used);
  }
  return static_cast<std::int64_t>(peak);
}

}  // namespace

std::optional<PipelineSimulation> simulate_if_it_ends(const PipelineSchedule& schedule,
                                                      const PipelineCosts& costs) {
  require(costs.stages.size() == static_cast<std::size_t>(schedule.shape.num_stages()),
          fmt::format("a simulation of {} stages has the cost of each, not {} costs",
                      schedule.shape.num_stages(),
                      costs.stages.size()));
  const MessageCost& message = costs.message;
  std::vector<double> clock(schedule.ranks.size(), 0);
  std::vector<QueueTimes> queues(schedule.queues.size());
  for (std::size_t queue = 0; queue < queues.size(); ++queue) {
    const auto count = static_cast<std::size_t>(schedule.queues[queue].num_messages);
    queues[queue].made.reserve(count);
    queues[queue].arrived.reserve(count);
    queues[queue].used_up.reserve(count);
  }
  PipelineSimulation result;
  result.ranks.resize(schedule.ranks.size());
  const auto visit = [&](std::size_t rank, const ScheduleStep& step, std::int32_t used) {
    double& now = clock[rank];
    if (step.kind == StepKind::compute) {
      const double time =
          duration(step.action.kind, costs.stages[static_cast<std::size_t>(step.action.stage)]);
      now += time;
      result.ranks[rank].busy += time;
      if (used >= 0) {
        queues[static_cast<std::size_t>(used)].used_up.push_back(now);
      }
      return;
    }
    QueueTimes& times = queues[static_cast<std::size_t>(step.queue)];
    const auto sequence = static_cast<std::size_t>(step.sequence);
    if (step.kind == StepKind::receive) {
      now = std::max(now, times.arrived[sequence]);
      return;
    }
    const auto slots =
        static_cast<std::size_t>(schedule.queues[static_cast<std::size_t>(step.queue)].slots);
    double begin = std::max(now, times.free);
    if (slots > 0 && sequence >= slots) {
      begin = std::max(begin, times.used_up[sequence - slots]);
    }
    times.made.push_back(now);
    times.free = begin + message.transfer();
    times.arrived.push_back(times.free + message.latency);
    if (!message.overlapped) {
      now = times.arrived.back();
    }
  };
  if (!ScheduleReplay(schedule).run(visit)) {
    return std::nullopt;
  }
  for (const double end : clock) {
    result.makespan = std::max(result.makespan, end);
  }
  double idle = 0;
  for (std::size_t rank = 0; rank < result.ranks.size(); ++rank) {
    RankSimulation& of_rank = result.ranks[rank];
    of_rank.idle = result.makespan - of_rank.busy;
    idle += of_rank.idle;
    measure_peaks(schedule, costs.stages, rank, of_rank);
  }
  const double all = result.makespan * static_cast<double>(result.ranks.size());
  result.bubble_share = all > 0 ? idle / all : 0;
  for (const QueueTimes& times : queues) {
    result.peak_messages.push_back(peak_of(times));
  }
  return result;
}

PipelineSimulation simulate(const PipelineSchedule& schedule, const PipelineCosts& costs) {
  const std::optional<PipelineSimulation> result = simulate_if_it_ends(schedule, costs);
  require(result.has_value(),
          "the ranks of a simulated schedule do not wait for each other forever");
  return *result;
}

}  // namespace memphis
