// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/schedule_messages.h"

#include <algorithm>
#include <optional>
#include <span>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/plan/schedule_check.h"
#include "csrc/plan/schedule_replay.h"

namespace memphis {
namespace {

// One message arrives while another is used.
constexpr std::int64_t kLeastSlots = 2;

// The queues by stage. -1: no message.
struct Boundaries {
  std::vector<std::int32_t> activations;  // [s]: from stage s to s + 1
  std::vector<std::int32_t> gradients;    // [s]: from stage s + 1 to s

  // Of what the action needs, and of what it makes.
  std::int32_t before(const Action& action) const {
    const auto stage = static_cast<std::size_t>(action.stage);
    if (action.kind == ActionKind::forward) {
      return stage > 0 ? activations[stage - 1] : -1;
    }
    return makes_input_gradient(action.kind) ? gradients[stage] : -1;
  }
  std::int32_t behind(const Action& action) const {
    const auto stage = static_cast<std::size_t>(action.stage);
    if (action.kind == ActionKind::forward) {
      return activations[stage];
    }
    return makes_input_gradient(action.kind) && stage > 0 ? gradients[stage - 1] : -1;
  }
};

std::int32_t queue_between(std::vector<MessageQueue>& queues,
                           std::int64_t from_rank,
                           std::int64_t to_rank,
                           MessageKind kind,
                           std::int64_t num_messages) {
  const MessageQueue wanted{.from_rank = from_rank, .to_rank = to_rank, .kind = kind};
  const auto found = std::find_if(queues.begin(), queues.end(), [&](const MessageQueue& queue) {
    return queue.connects_as(wanted);
  });
  const auto index = static_cast<std::int32_t>(found - queues.begin());
  if (found == queues.end()) {
    queues.push_back(wanted);
  }
  queues[static_cast<std::size_t>(index)].num_messages += num_messages;
  return index;
}

Boundaries make_queues(const PipelineShape& shape, std::vector<MessageQueue>& queues) {
  const auto num_stages = static_cast<std::size_t>(shape.num_stages());
  Boundaries result{.activations = std::vector<std::int32_t>(num_stages, -1),
                    .gradients = std::vector<std::int32_t>(num_stages, -1)};
  for (std::size_t stage = 0; stage + 1 < num_stages; ++stage) {
    const std::int64_t from = shape.place_of(static_cast<std::int64_t>(stage)).rank;
    const std::int64_t to = shape.place_of(static_cast<std::int64_t>(stage) + 1).rank;
    if (from == to) {
      continue;
    }
    const std::int64_t messages = shape.num_micro_batches;
    result.activations[stage] = queue_between(queues, from, to, MessageKind::activation, messages);
    if (!shape.forward_only) {
      result.gradients[stage] = queue_between(queues, to, from, MessageKind::gradient, messages);
    }
  }
  return result;
}

// What a rank keeps while it goes through its list.
class SlotCount {
 public:
  SlotCount(const PipelineShape& shape, std::int64_t rank, ChunkSlots* slots)
      : shape_(shape), rank_(rank), peaks_(slots) {
    now_.resize(static_cast<std::size_t>(shape.num_chunks));
  }

  void count(const Action& action) {
    const std::size_t chunk = static_cast<std::size_t>(action.chunk);
    ChunkSlots& now = now_[chunk];
    if (action.kind == ActionKind::forward) {
      raise(chunk, &ChunkSlots::held);
      hand_over(action.stage + 1, &ChunkSlots::activations);
      take_over(action.stage - 1, now.activations);
      now.held -= shape_.forward_only ? 1 : 0;
    }
    if (makes_input_gradient(action.kind)) {
      hand_over(action.stage - 1, &ChunkSlots::gradients);
      take_over(action.stage + 1, now.gradients);
      // B leaves nothing for later.
      if (action.kind == ActionKind::backward_inputs) {
        raise(chunk, &ChunkSlots::pending_weights);
      }
    }
    if (makes_weight_gradient(action.kind)) {
      now.pending_weights -= action.kind == ActionKind::backward_weights ? 1 : 0;
      --now.held;
    }
  }

 private:
  void raise(std::size_t chunk, std::int64_t ChunkSlots::*what) {
    ChunkSlots& peak = peaks_[chunk];
    peak.*what = std::max(peak.*what, ++(now_[chunk].*what));
  }

  void hand_over(std::int64_t to_stage, std::int64_t ChunkSlots::*what) {
    if (shape_.is_on(rank_, to_stage)) {
      raise(static_cast<std::size_t>(shape_.place_of(to_stage).chunk), what);
    }
  }

  void take_over(std::int64_t from_stage, std::int64_t& count) const {
    count -= shape_.is_on(rank_, from_stage) ? 1 : 0;
  }

  const PipelineShape& shape_;
  std::int64_t rank_;
  ChunkSlots* peaks_;
  std::vector<ChunkSlots> now_;
};

}  // namespace

std::string_view name_of(MessageKind kind) {
  return kind == MessageKind::activation ? "activation" : "gradient";
}

std::vector<MessageQueue> message_queues(const PipelineShape& shape) {
  std::vector<MessageQueue> queues;
  (void)make_queues(shape, queues);
  return queues;
}

std::string PipelineSchedule::describe(const ScheduleStep& step) const {
  if (step.kind == StepKind::compute) {
    return memphis::describe(step.action);
  }
  const MessageQueue& queue = queues[static_cast<std::size_t>(step.queue)];
  const bool is_send = step.kind == StepKind::send;
  return fmt::format("{} of {} {} from rank {} to rank {}, {} {}",
                     is_send ? "send" : "receive",
                     name_of(queue.kind),
                     step.sequence,
                     queue.from_rank,
                     queue.to_rank,
                     is_send ? "made by" : "for",
                     memphis::describe(step.action));
}

PipelineSchedule make_schedule(const PipelineShape& shape) {
  require_runs(shape);
  std::vector<std::vector<Action>> actions;
  for (std::int64_t rank = 0; rank < shape.num_ranks; ++rank) {
    actions.push_back(make_actions(shape, rank));
  }
  return add_messages(shape, actions);
}

PipelineSchedule add_messages(const PipelineShape& shape,
                              const std::vector<std::vector<Action>>& actions) {
  check_actions(shape, actions);
  PipelineSchedule schedule;
  schedule.shape = shape;
  const Boundaries boundaries = make_queues(shape, schedule.queues);
  schedule.slots.resize(static_cast<std::size_t>(shape.num_stages()));
  std::vector<std::int32_t> sent(schedule.queues.size(), 0);
  std::vector<std::int32_t> received(schedule.queues.size(), 0);
  for (std::size_t rank = 0; rank < actions.size(); ++rank) {
    SlotCount slots(shape,
                    static_cast<std::int64_t>(rank),
                    &schedule.slots[rank * static_cast<std::size_t>(shape.num_chunks)]);
    std::vector<ScheduleStep>& steps = schedule.ranks.emplace_back();
    steps.reserve(3 * actions[rank].size());
    const auto message = [&](StepKind kind,
                             const Action& action,
                             std::int32_t queue,
                             std::vector<std::int32_t>& counts) {
      if (queue >= 0) {
        steps.push_back({.kind = kind,
                         .action = action,
                         .queue = queue,
                         .sequence = counts[static_cast<std::size_t>(queue)]++});
      }
    };
    for (std::size_t i = 0; i < actions[rank].size();) {
      const std::span together =
          std::span(actions[rank]).subspan(i, actions[rank][i].with_next ? 2 : 1);
      for (const Action& action : together) {
        message(StepKind::receive, action, boundaries.before(action), received);
      }
      for (const Action& action : together) {
        steps.push_back({.kind = StepKind::compute, .action = action});
        slots.count(action);
      }
      for (const Action& action : together) {
        message(StepKind::send, action, boundaries.behind(action), sent);
      }
      i += together.size();
    }
  }
  // Queues have no slots yet, which is room for all messages. If ranks wait for each other even so,
  // the check says who.
  const std::optional<PipelineSimulation> even = simulate_if_it_ends(
      schedule,
      {.stages = std::vector<StageCost>(static_cast<std::size_t>(shape.num_stages())),
       .message = {}});
  for (std::size_t queue = 0; even.has_value() && queue < schedule.queues.size(); ++queue) {
    schedule.queues[queue].slots = std::min(schedule.queues[queue].num_messages,
                                            std::max(even->peak_messages[queue], kLeastSlots));
  }
  check_schedule(schedule);
  return schedule;
}

}  // namespace memphis
