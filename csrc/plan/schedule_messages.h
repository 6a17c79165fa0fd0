// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/plan/schedule.h"

// What pipeline ranks send each other, and where it lies meanwhile: a schedule as an executor runs
// it.
namespace memphis {

// The output of a stage goes to the next one, the gradient of its input to the one before.
enum class MessageKind : std::uint8_t { activation, gradient };

std::string_view name_of(MessageKind kind);

// Messages of one kind from one rank to another. They arrive in the order in which they are sent,
// and are received in this order; nothing is said of two queues. One queue for both kinds would not
// do: a rank of zbv makes activations and gradients for its neighbour in another order than the
// neighbour needs them.
struct MessageQueue {
  std::int64_t from_rank = 0;  // along Axis::pipeline
  std::int64_t to_rank = 0;
  MessageKind kind = MessageKind::activation;
  std::int64_t num_messages = 0;  // of a step
  // Messages that the receiver has room for. Message k lies in slot k % slots from its send until
  // the action has ended that it is for, so that a send waits for the action of message k - slots.
  // As many as are made and not yet used up at one time where F, I and W take the same time in all
  // stages, and two at least, so that one can arrive while another is used. With these no rank ever
  // waits in a circle with others, whatever takes how long; with fewer it could.
  std::int64_t slots = 0;

  // Whether both carry the same kind between the same ranks.
  bool connects_as(const MessageQueue& other) const {
    return from_rank == other.from_rank && to_rank == other.to_rank && kind == other.kind;
  }
};

// Those of a shape, in an order that every rank has; without slots.
std::vector<MessageQueue> message_queues(const PipelineShape& shape);

enum class StepKind : std::uint8_t { receive, compute, send };

// An action, the receive before it or the send after it.
struct ScheduleStep {
  StepKind kind = StepKind::compute;
  Action action;  // of a receive, what needs the message; of a send, what made it
  // Of messages: in PipelineSchedule::queues, and the place in that queue, from 0 in each step.
  std::int32_t queue = -1;
  std::int32_t sequence = -1;

  bool operator==(const ScheduleStep&) const = default;
};

// What a rank keeps for a chunk at one time, at most. Micro-batch b lies in slot b % count of each.
struct ChunkSlots {
  std::int64_t held = 0;             // activations: from F until W, or B, has ended
  std::int64_t pending_weights = 0;  // of those, from the end of I until W has ended
  // What a chunk of the same rank has made for this one, which no message brings: from the end of
  // the action that made it until the action of this chunk has ended. 0: a message brings it.
  std::int64_t activations = 0;
  std::int64_t gradients = 0;

  bool operator==(const ChunkSlots&) const = default;
};

struct PipelineSchedule {
  PipelineShape shape;
  std::vector<MessageQueue> queues;  // by the first stage that sends; the same on every rank
  std::vector<std::vector<ScheduleStep>> ranks;
  std::vector<ChunkSlots> slots;  // of chunk c of rank r: [r num_chunks + c]

  const ChunkSlots& slots_of(const StagePlace& place) const {
    return slots[static_cast<std::size_t>(place.rank * shape.num_chunks + place.chunk)];
  }
  // "receive of activation 7 from rank 1 to rank 2, for forward of micro-batch 5 in stage 2, chunk
  // 0"; of compute what describe(Action) says.
  std::string describe(const ScheduleStep& step) const;
};

// The whole schedule of a shape, checked (csrc/plan/schedule_check.h).
//
// Messages   each activation and each gradient between two ranks is sent right after the action
//            that makes it and received right before the one that needs it; what a pair of actions
//            needs, before both, and what it makes, after both. Stages that are neighbours on one
//            rank have none.
// Errors     ConfigError as require_runs.
// Cost       time and memory of all ranks' actions, 32 bytes each.
PipelineSchedule make_schedule(const PipelineShape& shape);

// The second half of make_schedule, for lists of any origin: actions[r] are those of rank r.
// ContractError, as check_actions and check_schedule, if these lists cannot be run.
PipelineSchedule add_messages(const PipelineShape& shape,
                              const std::vector<std::vector<Action>>& actions);

}  // namespace memphis
