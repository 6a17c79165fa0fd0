// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/pipeline.h"

#include <algorithm>

#include "csrc/core/error.h"

namespace memphis {
namespace {

std::vector<TensorView> allocate(std::int64_t count, const TensorSpec& spec, Arena& arena) {
  std::vector<TensorView> places;
  for (std::int64_t i = 0; i < count; ++i) {
    places.push_back(arena.allocate(spec));
  }
  return places;
}

template <class Places>
auto& place_of(Places& places, std::int64_t number) {
  return places[static_cast<std::size_t>(number) % places.size()];
}

}  // namespace

const char* name_of_message(MessageKind kind) {
  return kind == MessageKind::activation ? "pipeline.activation" : "pipeline.gradient";
}

Pipeline::Pipeline(const MessageBuffers& plan,
                   const ActivationPlan& activations,
                   const Groups& groups,
                   std::span<MicroBatch> slots,
                   const TensorView& dhidden_TD,
                   Arena& workspace,
                   Stream stream)
    : rank_(plan.rank),
      activations_(activations),
      groups_(groups),
      slots_(slots),
      dhidden_TD_(dhidden_TD),
      stream_(stream) {
  for (std::size_t i = 0; i < plan.queues.size(); ++i) {
    End& end = ends_.emplace_back();
    end.queue = plan.queues[i].queue;
    if (plan.queues[i].num_places == 0) {
      continue;
    }
    end.group = groups_.queue(i);
    end.places = allocate(plan.queues[i].num_places, plan.message_TD, workspace);
    end.under_way.resize(end.places.size());
  }
  for (const ChunkSlots& slots_of_chunk : plan.handed) {
    handed_.push_back(
        {.activations = allocate(slots_of_chunk.activations, plan.message_TD, workspace),
         .gradients = allocate(slots_of_chunk.gradients, plan.message_TD, workspace)});
  }
}

MicroBatch& Pipeline::slot_of(std::int64_t chunk, std::int64_t micro_batch) {
  return slots_[activations_.slot_of(chunk, micro_batch)];
}

void Pipeline::match_queues(const PipelineSchedule& schedule) {
  end_of_queue_.clear();
  for (const MessageQueue& queue : schedule.queues) {
    const auto found = std::find_if(
        ends_.begin(), ends_.end(), [&](const End& end) { return end.queue.connects_as(queue); });
    require(found != ends_.end(), "a pipeline runs schedules that its plan was made for");
    end_of_queue_.push_back(static_cast<std::size_t>(found - ends_.begin()));
  }
}

Pipeline::End& Pipeline::end_of(const ScheduleStep& step) {
  return ends_[end_of_queue_[static_cast<std::size_t>(step.queue)]];
}

void Pipeline::start_receives(const PipelineSchedule& schedule) {
  for (std::size_t i = 0; i < schedule.queues.size(); ++i) {
    End& end = ends_[end_of_queue_[i]];
    if (end.group == nullptr || end.queue.from_rank == rank_) {
      continue;
    }
    const auto places = static_cast<std::int64_t>(end.places.size());
    for (std::int64_t k = 0; k < std::min(places, schedule.queues[i].num_messages); ++k) {
      start_receive(end, k);
    }
  }
}

void Pipeline::run(const PipelineSchedule& schedule, const Act& act, const ActTogether& together) {
  match_queues(schedule);
  start_receives(schedule);
  go_through(schedule, Which::all, act, together);
}

// A micro-batch passes through the stages forward and then backward, and each rank has its actions in
// that order, but for gradients of weights, which send nothing. So whatever this rank waits for, the
// rank at the other end of its message comes there without it.
void Pipeline::run_first(const PipelineSchedule& schedule, const Act& act) {
  match_queues(schedule);
  go_through(schedule, Which::first, act, {});
}

void Pipeline::go_through(const PipelineSchedule& schedule,
                          Which which,
                          const Act& act,
                          const ActTogether& together) {
  const PipelineShape& shape = schedule.shape;
  const bool says_which = shape.num_micro_batches * shape.num_stages() > 1;
  const Action* first = nullptr;  // of a pair
  for (const ScheduleStep& step : schedule.ranks[static_cast<std::size_t>(rank_)]) {
    const Action& action = step.action;
    if (which == Which::first && action.micro_batch != 0) {
      continue;
    }
    if (says_which) {
      groups_.activity().begin_micro_batch(action.micro_batch,
                                           shape.num_stages() > 1 ? action.stage : -1);
    }
    switch (step.kind) {
      case StepKind::receive:
        if (which == Which::first) {
          start_receive(end_of(step), step.sequence);
        }
        receive(step);
        if (which == Which::all) {
          start_next_receive(schedule, step);
        }
        break;
      case StepKind::compute:
        take_over(shape, action);
        if (action.with_next && together) {
          first = &action;
          break;
        }
        if (first != nullptr) {
          together(*first,
                   slot_of(first->chunk, first->micro_batch),
                   action,
                   slot_of(action.chunk, action.micro_batch));
          hand_over(shape, *first);
          first = nullptr;
        } else {
          act(action, slot_of(action.chunk, action.micro_batch));
        }
        hand_over(shape, action);
        break;
      case StepKind::send:
        send(step);
        break;
    }
  }
  groups_.activity().begin_micro_batch(-1);
}

bool Pipeline::receives_on_gpu() const {
  return stream_.device == Device::cuda &&
         std::any_of(
             ends_.begin(), ends_.end(), [](const End& end) { return end.group != nullptr; });
}

void Pipeline::start_receive(End& end, std::int64_t sequence) {
  place_of(end.under_way, sequence) =
      end.group->start(Broadcast{.x = place_of(end.places, sequence), .root = end.root()},
                       name_of_message(end.queue.kind),
                       stream_);
}

void Pipeline::receive(const ScheduleStep& step) {
  End& end = end_of(step);
  groups_.activity().enter(end.queue.kind == MessageKind::activation ? "receive of an activation"
                                                                     : "receive of a gradient");
  place_of(end.under_way, step.sequence)->wait(stream_);
  place_of(end.under_way, step.sequence).reset();
  copy(input_of(step.action), place_of(end.places, step.sequence));
}

void Pipeline::start_next_receive(const PipelineSchedule& schedule, const ScheduleStep& step) {
  End& end = end_of(step);
  const std::int64_t next = step.sequence + static_cast<std::int64_t>(end.places.size());
  if (next < schedule.queues[static_cast<std::size_t>(step.queue)].num_messages) {
    start_receive(end, next);
  }
}

void Pipeline::send(const ScheduleStep& step) {
  End& end = end_of(step);
  groups_.activity().enter(end.queue.kind == MessageKind::activation ? "send of an activation"
                                                                     : "send of a gradient");
  std::unique_ptr<Communicator::Work>& before = place_of(end.under_way, step.sequence);
  if (before) {
    before->wait(stream_);
    before.reset();
  }
  const TensorView& place = place_of(end.places, step.sequence);
  copy(place, output_of(step.action));
  before = end.group->start(
      Broadcast{.x = place, .root = end.root()}, name_of_message(end.queue.kind), stream_);
}

void Pipeline::take_over(const PipelineShape& shape, const Action& action) {
  const Handed& handed = handed_[static_cast<std::size_t>(action.chunk)];
  if (action.kind == ActionKind::forward && shape.is_on(rank_, action.stage - 1)) {
    copy(input_of(action), place_of(handed.activations, action.micro_batch));
  } else if (makes_input_gradient(action.kind) && shape.is_on(rank_, action.stage + 1)) {
    copy(input_of(action), place_of(handed.gradients, action.micro_batch));
  }
}

void Pipeline::hand_over(const PipelineShape& shape, const Action& action) {
  const auto taker = [&](std::int64_t stage) -> const Handed& {
    return handed_[static_cast<std::size_t>(shape.place_of(stage).chunk)];
  };
  if (action.kind == ActionKind::forward && shape.is_on(rank_, action.stage + 1)) {
    copy(place_of(taker(action.stage + 1).activations, action.micro_batch), output_of(action));
  } else if (makes_input_gradient(action.kind) && shape.is_on(rank_, action.stage - 1)) {
    copy(place_of(taker(action.stage - 1).gradients, action.micro_batch), output_of(action));
  }
}

const TensorView& Pipeline::input_of(const Action& action) {
  return action.kind == ActionKind::forward
             ? slot_of(action.chunk, action.micro_batch).tensors.hidden_TD
             : dhidden_TD_;
}

const TensorView& Pipeline::output_of(const Action& action) {
  return action.kind == ActionKind::forward ? slot_of(action.chunk, action.micro_batch).output_TD()
                                            : dhidden_TD_;
}

void Pipeline::copy(const TensorView& to, const TensorView& from) {
  device_copy(to.data, from.data, from.bytes(), stream_);
}

}  // namespace memphis
