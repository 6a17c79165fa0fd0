// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/schedule_check.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/plan/schedule_replay.h"

namespace memphis {
namespace {

// F, I and W; B is the last two.
constexpr std::size_t kForward = 0;
constexpr std::size_t kInputs = 1;
constexpr std::size_t kWeights = 2;
constexpr std::array<const char*, 3> kPasses = {
    "forward pass", "gradient of inputs", "gradient of weights"};

// Micro-batches that a stage has had, in each pass. They come in ascending order, so that this is
// also the next one.
using Done = std::array<std::int64_t, 3>;

bool has_pass(ActionKind kind, std::size_t pass) {
  return pass == kForward  ? kind == ActionKind::forward
         : pass == kInputs ? makes_input_gradient(kind)
                           : makes_weight_gradient(kind);
}

[[noreturn]] void refuse(const std::string& problem) {
  throw ContractError("the schedule cannot be run: " + problem);
}

std::string at(std::size_t rank, std::size_t place, const Action& action) {
  return fmt::format("{} (rank {}, action {})", describe(action), rank, place);
}

class ActionCheck {
 public:
  ActionCheck(const PipelineShape& shape, const std::vector<std::vector<Action>>& actions)
      : shape_(shape), actions_(actions), done_(static_cast<std::size_t>(shape.num_stages())) {}

  void run() {
    if (actions_.size() != static_cast<std::size_t>(shape_.num_ranks)) {
      refuse(fmt::format("{} ranks have {} lists", shape_.num_ranks, actions_.size()));
    }
    for (std::size_t rank = 0; rank < actions_.size(); ++rank) {
      for (std::size_t place = 0; place < actions_[rank].size(); ++place) {
        check(rank, place);
      }
    }
    const std::size_t passes = shape_.forward_only ? kForward : kWeights;
    for (std::size_t stage = 0; stage < done_.size(); ++stage) {
      for (std::size_t pass = kForward; pass <= passes; ++pass) {
        if (done_[stage][pass] != shape_.num_micro_batches) {
          refuse(fmt::format("stage {} has no {} of micro-batch {} on rank {}",
                             stage,
                             kPasses[pass],
                             done_[stage][pass],
                             shape_.place_of(static_cast<std::int64_t>(stage)).rank));
        }
      }
    }
  }

 private:
  void check(std::size_t rank, std::size_t place) {
    const Action& action = actions_[rank][place];
    const StagePlace where{.rank = static_cast<std::int64_t>(rank), .chunk = action.chunk};
    if (action.chunk < 0 || action.chunk >= shape_.num_chunks ||
        action.stage != shape_.stage_of(where)) {
      refuse(fmt::format("{} is of no stage of its rank", at(rank, place, action)));
    }
    if (action.micro_batch < 0 || action.micro_batch >= shape_.num_micro_batches) {
      refuse(fmt::format(
          "{}: there are {} micro-batches", at(rank, place, action), shape_.num_micro_batches));
    }
    if (shape_.forward_only && action.kind != ActionKind::forward) {
      refuse(fmt::format("{} is no forward pass", at(rank, place, action)));
    }
    if (action.with_next) {
      check_pair(rank, place);
    }
    Done& done = done_[static_cast<std::size_t>(action.stage)];
    for (std::size_t pass = kForward; pass <= kWeights; ++pass) {
      if (has_pass(action.kind, pass)) {
        check_order(rank, place, pass, done[pass]);
        if (pass != kForward && done[pass - 1] <= action.micro_batch) {
          refuse(fmt::format("{} comes before the {} of the same micro-batch, {}",
                             at(rank, place, action),
                             kPasses[pass - 1],
                             find(rank, action.stage, action.micro_batch, pass - 1, place)));
        }
        check_neighbour(rank, place, pass);
        ++done[pass];
      }
    }
  }

  // Neither of a pair needs what the other makes. What a backward pass needs of other stages comes
  // from backward passes, so that it is its own stage's forward pass alone.
  void check_pair(std::size_t rank, std::size_t place) const {
    const Action& action = actions_[rank][place];
    const std::string first = at(rank, place, action);
    if (!shape_.paired) {
      refuse(fmt::format("{} is of a pair, and this schedule has none", first));
    }
    const Action* const next =
        place + 1 < actions_[rank].size() ? &actions_[rank][place + 1] : nullptr;
    if (action.kind != ActionKind::forward || next == nullptr ||
        !makes_input_gradient(next->kind)) {
      refuse(
          fmt::format("{} is done together with {}, and a pair is a forward pass and a backward "
                      "pass that makes a gradient of inputs",
                      first,
                      next == nullptr ? "nothing" : at(rank, place + 1, *next)));
    }
    if (next->stage == action.stage && next->micro_batch == action.micro_batch) {
      refuse(fmt::format("{} is done together with {}, which needs what it makes",
                         first,
                         at(rank, place + 1, *next)));
    }
  }

  void check_order(std::size_t rank, std::size_t place, std::size_t pass, std::int64_t next) const {
    const Action& action = actions_[rank][place];
    if (action.micro_batch < next) {
      refuse(fmt::format("{} comes again after {}",
                         at(rank, place, action),
                         find(rank, action.stage, action.micro_batch, pass, 0)));
    }
    if (action.micro_batch > next) {
      refuse(fmt::format("{} comes before {}, and sums over micro-batches have one order",
                         at(rank, place, action),
                         find(rank, action.stage, next, pass, place)));
    }
  }

  // What a neighbouring stage on the same rank makes for this action.
  void check_neighbour(std::size_t rank, std::size_t place, std::size_t pass) const {
    const Action& action = actions_[rank][place];
    const std::int64_t neighbour = action.stage + (pass == kForward ? -1 : 1);
    if (pass == kWeights || neighbour < 0 || neighbour >= shape_.num_stages() ||
        shape_.place_of(neighbour).rank != static_cast<std::int64_t>(rank)) {
      return;
    }
    if (done_[static_cast<std::size_t>(neighbour)][pass] <= action.micro_batch) {
      refuse(fmt::format("{} comes before what it needs, {}",
                         at(rank, place, action),
                         find(rank, neighbour, action.micro_batch, pass, place)));
    }
  }

  // In words, the first action from `place` on that has the pass.
  std::string find(std::size_t rank,
                   std::int64_t stage,
                   std::int64_t micro_batch,
                   std::size_t pass,
                   std::size_t place) const {
    for (; place < actions_[rank].size(); ++place) {
      const Action& action = actions_[rank][place];
      if (action.stage == stage && action.micro_batch == micro_batch &&
          has_pass(action.kind, pass)) {
        return at(rank, place, action);
      }
    }
    return fmt::format("the {} of micro-batch {} in stage {}, which its list does not have",
                       kPasses[pass],
                       micro_batch,
                       stage);
  }

  const PipelineShape& shape_;
  const std::vector<std::vector<Action>>& actions_;
  std::vector<Done> done_;
};

// Slots are enough: whoever writes slot b % count finds that what lay there is used up.
class SlotCheck {
 public:
  explicit SlotCheck(const PipelineSchedule& schedule)
      : schedule_(schedule),
        shape_(schedule.shape),
        done_(static_cast<std::size_t>(shape_.num_stages())) {}

  void run() {
    if (schedule_.slots.size() != done_.size()) {
      refuse(fmt::format("{} chunks have slots, of {}", schedule_.slots.size(), done_.size()));
    }
    for (std::size_t rank = 0; rank < schedule_.ranks.size(); ++rank) {
      for (const ScheduleStep& step : schedule_.ranks[rank]) {
        if (step.kind == StepKind::compute) {
          check(rank, step);
        }
      }
    }
  }

 private:
  void check(std::size_t rank, const ScheduleStep& step) {
    const Action& action = step.action;
    const ChunkSlots& own = slots_of(action.stage);
    if (action.kind == ActionKind::forward) {
      const std::size_t last_pass = shape_.forward_only ? kForward : kWeights;
      require_free(rank, step, "activations", own.held, action.stage, last_pass);
      if (is_on(rank, action.stage + 1)) {
        const std::int64_t count = slots_of(action.stage + 1).activations;
        require_free(rank, step, "its output", count, action.stage + 1, kForward);
      }
    }
    if (makes_input_gradient(action.kind) && is_on(rank, action.stage - 1)) {
      const std::int64_t count = slots_of(action.stage - 1).gradients;
      require_free(rank, step, "its gradient", count, action.stage - 1, kInputs);
    }
    if (action.kind == ActionKind::backward_inputs) {
      const std::int64_t count = own.pending_weights;
      require_free(rank, step, "gradients of weights to come", count, action.stage, kWeights);
    }
    for (std::size_t pass = kForward; pass <= kWeights; ++pass) {
      done_[static_cast<std::size_t>(action.stage)][pass] += has_pass(action.kind, pass) ? 1 : 0;
    }
  }

  // `stage` has used up, in `pass`, what lay in the slot.
  void require_free(std::size_t rank,
                    const ScheduleStep& step,
                    const char* what,
                    std::int64_t count,
                    std::int64_t stage,
                    std::size_t pass) const {
    const std::int64_t lies_there = step.action.micro_batch - count;
    if (lies_there >= done_[static_cast<std::size_t>(stage)][pass]) {
      refuse(
          fmt::format("{} (rank {}, step {}) finds none of {} slots for {} free before the {} of "
                      "micro-batch {} in stage {}",
                      describe(step.action),
                      rank,
                      &step - schedule_.ranks[rank].data(),
                      count,
                      what,
                      kPasses[pass],
                      lies_there,
                      stage));
    }
  }

  bool is_on(std::size_t rank, std::int64_t stage) const {
    return stage >= 0 && stage < shape_.num_stages() &&
           shape_.place_of(stage).rank == static_cast<std::int64_t>(rank);
  }

  const ChunkSlots& slots_of(std::int64_t stage) const {
    return schedule_.slots_of(shape_.place_of(stage));
  }

  const PipelineSchedule& schedule_;
  const PipelineShape& shape_;
  std::vector<Done> done_;
};

class MessageCheck {
 public:
  explicit MessageCheck(const PipelineSchedule& schedule)
      : schedule_(schedule), shape_(schedule.shape), queues_(schedule.queues.size()) {}

  void run() {
    for (std::size_t queue = 0; queue < queues_.size(); ++queue) {
      const auto count = static_cast<std::size_t>(schedule_.queues[queue].num_messages);
      queues_[queue].sends.reserve(count);
      queues_[queue].receives.reserve(count);
    }
    for (std::size_t rank = 0; rank < schedule_.ranks.size(); ++rank) {
      check_list(rank);
    }
    for (std::size_t queue = 0; queue < queues_.size(); ++queue) {
      check_queue(queue);
    }
    check_progress();
  }

 private:
  struct Queue {
    std::vector<const ScheduleStep*> sends;
    std::vector<const ScheduleStep*> receives;
  };

  std::string at_step(std::size_t rank, const ScheduleStep& step) const {
    return fmt::format("{} (rank {}, step {})",
                       schedule_.describe(step),
                       rank,
                       &step - schedule_.ranks[rank].data());
  }

  // The neighbour that `action` takes from or gives to, if it lies on another rank; else -1.
  std::int64_t peer(const Action& action, std::size_t rank, StepKind kind) const {
    if (action.kind == ActionKind::backward_weights) {
      return -1;
    }
    const bool up = (action.kind == ActionKind::forward) == (kind == StepKind::send);
    const std::int64_t stage = action.stage + (up ? 1 : -1);
    if (stage < 0 || stage >= shape_.num_stages()) {
      return -1;
    }
    const std::int64_t other = shape_.place_of(stage).rank;
    return other == static_cast<std::int64_t>(rank) ? -1 : other;
  }

  // Receives stand right before their actions, sends right after; both actions of a pair stand
  // between the receives and the sends of both.

  static bool begins_pair(const std::vector<ScheduleStep>& steps, std::size_t place) {
    return place < steps.size() && steps[place].kind == StepKind::compute &&
           steps[place].action.with_next;
  }

  // Where the action of a message is, or should be.
  static std::size_t place_of_action(const std::vector<ScheduleStep>& steps, std::size_t place) {
    const ScheduleStep& message = steps[place];
    const auto is_own = [&](std::size_t at) {
      return at < steps.size() && steps[at].kind == StepKind::compute &&
             steps[at].action == message.action;
    };
    const auto is_partners = [&](std::size_t at) {
      return at < steps.size() && steps[at].kind == message.kind &&
             steps[at].action != message.action;
    };
    if (message.kind == StepKind::receive) {
      const std::size_t first = place + (is_partners(place + 1) ? 2 : 1);
      if (begins_pair(steps, first)) {
        return is_own(first + 1) ? first + 1 : first;
      }
      return place + 1;
    }
    const std::size_t last = place - (is_partners(place - 1) ? 2 : 1);
    if (begins_pair(steps, last - 1)) {
      return is_own(last - 1) ? last - 1 : last;
    }
    return place - 1;
  }

  // Where a message of the action at `place` is, or should be.
  static std::size_t place_of_message(const std::vector<ScheduleStep>& steps,
                                      std::size_t place,
                                      StepKind kind) {
    const bool is_second = begins_pair(steps, place - 1);
    const bool is_first = begins_pair(steps, place);
    const std::size_t next =
        kind == StepKind::send ? place + (is_first ? 2 : 1) : place - (is_second ? 2 : 1);
    const std::size_t behind = kind == StepKind::send ? next + 1 : next - 1;
    const bool is_behind = (is_first || is_second) && behind < steps.size() &&
                           steps[behind].kind == kind &&
                           steps[behind].action == steps[place].action;
    return is_behind ? behind : next;
  }

  void check_list(std::size_t rank) {
    const std::vector<ScheduleStep>& steps = schedule_.ranks[rank];
    for (std::size_t place = 0; place < steps.size(); ++place) {
      const ScheduleStep& step = steps[place];
      if (step.kind == StepKind::compute) {
        check_message(rank, place, StepKind::receive);
        check_message(rank, place, StepKind::send);
        continue;
      }
      if (step.queue < 0 || static_cast<std::size_t>(step.queue) >= queues_.size()) {
        refuse(fmt::format("a message of {} (rank {}, step {}) is of queue {}, and there are {}",
                           describe(step.action),
                           rank,
                           place,
                           step.queue,
                           queues_.size()));
      }
      const bool is_send = step.kind == StepKind::send;
      const std::size_t action = place_of_action(steps, place);
      if (action >= steps.size() || steps[action].kind != StepKind::compute ||
          steps[action].action != step.action) {
        refuse(fmt::format("{} stands {} {}",
                           at_step(rank, step),
                           is_send ? "not right after its action, but after"
                                   : "not right before "
                                     "its action, but "
                                     "before",
                           action < steps.size() ? at_step(rank, steps[action]) : "nothing"));
      }
      Queue& queue = queues_[static_cast<std::size_t>(step.queue)];
      std::vector<const ScheduleStep*>& side = is_send ? queue.sends : queue.receives;
      if (static_cast<std::size_t>(step.sequence) != side.size()) {
        refuse(fmt::format("{} is number {} on its side, after {}",
                           at_step(rank, step),
                           side.size(),
                           side.empty() ? "nothing" : at_step(rank, *side.back())));
      }
      side.push_back(&step);
    }
  }

  // An action has the message that it needs or makes, from or to the rank of its neighbour.
  void check_message(std::size_t rank, std::size_t place, StepKind kind) const {
    const std::vector<ScheduleStep>& steps = schedule_.ranks[rank];
    const ScheduleStep& step = steps[place];
    const bool is_send = kind == StepKind::send;
    const std::size_t neighbour = place_of_message(steps, place, kind);
    const bool has = neighbour < steps.size() && steps[neighbour].kind == kind &&
                     steps[neighbour].action == step.action;
    const std::int64_t other = peer(step.action, rank, kind);
    if (has != (other >= 0)) {
      refuse(fmt::format("{} has {} {}, and the stage next to it lies on {}",
                         at_step(rank, step),
                         has ? "a" : "no",
                         is_send ? "send" : "receive",
                         other >= 0 ? fmt::format("rank {}", other) : "no other rank"));
    }
    if (!has || static_cast<std::size_t>(steps[neighbour].queue) >= queues_.size()) {
      return;
    }
    const MessageQueue& queue = schedule_.queues[static_cast<std::size_t>(steps[neighbour].queue)];
    const MessageKind needed =
        step.action.kind == ActionKind::forward ? MessageKind::activation : MessageKind::gradient;
    const auto self = static_cast<std::int64_t>(rank);
    if (queue.kind != needed || queue.from_rank != (is_send ? self : other) ||
        queue.to_rank != (is_send ? other : self)) {
      refuse(fmt::format(
          "{} does not serve {}", at_step(rank, steps[neighbour]), at_step(rank, step)));
    }
  }

  // The k-th send of a queue is what the k-th receive is for.
  void check_queue(std::size_t index) const {
    const Queue& queue = queues_[index];
    const MessageQueue& plan = schedule_.queues[index];
    const auto from = static_cast<std::size_t>(plan.from_rank);
    const auto to = static_cast<std::size_t>(plan.to_rank);
    const std::int32_t step = plan.kind == MessageKind::activation ? 1 : -1;
    for (std::size_t k = 0; k < std::min(queue.sends.size(), queue.receives.size()); ++k) {
      const Action& made = queue.sends[k]->action;
      const Action& needed = queue.receives[k]->action;
      if (made.micro_batch != needed.micro_batch || made.stage + step != needed.stage) {
        refuse(fmt::format("message {} of a queue is two things: {} and {}",
                           k,
                           at_step(from, *queue.sends[k]),
                           at_step(to, *queue.receives[k])));
      }
    }
    if (queue.sends.size() != queue.receives.size() ||
        static_cast<std::int64_t>(queue.sends.size()) != plan.num_messages) {
      refuse(
          fmt::format("the queue of {}s from rank {} to rank {} is planned for {} messages, and "
                      "has {} sends and {} receives",
                      name_of(plan.kind),
                      from,
                      to,
                      plan.num_messages,
                      queue.sends.size(),
                      queue.receives.size()));
    }
  }

  void check_progress() const {
    ScheduleReplay replay(schedule_);
    const auto ignore = [](std::size_t, const ScheduleStep&, std::int32_t) {};
    if (replay.run(ignore)) {
      return;
    }
    std::size_t rank = 0;
    while (replay.next(rank) == schedule_.ranks[rank].size()) {
      ++rank;
    }
    // A rank that waits, waits for one that waits: after as many steps as there are ranks, in the
    // circle.
    for (std::size_t i = 0; i < schedule_.ranks.size(); ++i) {
      rank = waited_for(replay, rank);
    }
    std::string circle;
    const std::size_t first = rank;
    do {
      const ScheduleStep& step = schedule_.ranks[rank][replay.next(rank)];
      circle += fmt::format(
          "{}{} waits for {}", circle.empty() ? "" : "; ", at_step(rank, step), waited_step(step));
      rank = waited_for(replay, rank);
    } while (rank != first);
    refuse("ranks wait in a circle: " + circle);
  }

  std::size_t waited_for(const ScheduleReplay& replay, std::size_t rank) const {
    const ScheduleStep& step = schedule_.ranks[rank][replay.next(rank)];
    const MessageQueue& queue = schedule_.queues[static_cast<std::size_t>(step.queue)];
    return static_cast<std::size_t>(step.kind == StepKind::receive ? queue.from_rank
                                                                   : queue.to_rank);
  }

  std::string waited_step(const ScheduleStep& step) const {
    const auto index = static_cast<std::size_t>(step.queue);
    const MessageQueue& plan = schedule_.queues[index];
    const auto sequence = static_cast<std::size_t>(step.sequence);
    if (step.kind == StepKind::receive) {
      return at_step(static_cast<std::size_t>(plan.from_rank), *queues_[index].sends[sequence]);
    }
    const ScheduleStep& holder =
        *queues_[index].receives[sequence - static_cast<std::size_t>(plan.slots)];
    return fmt::format("a slot, of {}, that is free after {} (rank {})",
                       plan.slots,
                       describe(holder.action),
                       plan.to_rank);
  }

  const PipelineSchedule& schedule_;
  const PipelineShape& shape_;
  std::vector<Queue> queues_;
};

std::vector<std::vector<Action>> actions_of(const PipelineSchedule& schedule) {
  std::vector<std::vector<Action>> result;
  for (const std::vector<ScheduleStep>& steps : schedule.ranks) {
    std::vector<Action>& actions = result.emplace_back();
    actions.reserve(steps.size());
    for (const ScheduleStep& step : steps) {
      if (step.kind == StepKind::compute) {
        actions.push_back(step.action);
      }
    }
  }
  return result;
}

}  // namespace

void check_actions(const PipelineShape& shape, const std::vector<std::vector<Action>>& actions) {
  require_runs(shape);
  ActionCheck(shape, actions).run();
}

void check_schedule(const PipelineSchedule& schedule) {
  check_actions(schedule.shape, actions_of(schedule));
  SlotCheck(schedule).run();
  MessageCheck(schedule).run();
}

}  // namespace memphis
