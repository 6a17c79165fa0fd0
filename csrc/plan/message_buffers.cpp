// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/message_buffers.h"

#include <algorithm>

#include "csrc/core/arena.h"

namespace memphis {

std::size_t MessageBuffers::bytes() const {
  std::int64_t places = 0;
  for (const Queue& queue : queues) {
    places += queue.num_places;
  }
  for (const ChunkSlots& slots : handed) {
    places += slots.activations + slots.gradients;
  }
  return static_cast<std::size_t>(places) * arena_bytes(message_TD);
}

MessageBuffers plan_message_buffers(const std::vector<const PipelineSchedule*>& schedules,
                                    std::int64_t rank,
                                    const TensorSpec& message_TD) {
  MessageBuffers result{.rank = rank, .message_TD = message_TD, .queues = {}, .handed = {}};
  PipelineShape shape = schedules.front()->shape;
  shape.forward_only = false;
  for (const MessageQueue& queue : message_queues(shape)) {
    result.queues.push_back({.queue = queue});
  }
  result.handed.resize(static_cast<std::size_t>(shape.num_chunks));
  for (const PipelineSchedule* schedule : schedules) {
    for (const MessageQueue& queue : schedule->queues) {
      MessageBuffers::Queue& planned = *std::find_if(
          result.queues.begin(), result.queues.end(), [&](const MessageBuffers::Queue& each) {
            return each.queue.connects_as(queue);
          });
      planned.queue.slots = std::max(planned.queue.slots, queue.slots);
      if (queue.from_rank == rank) {
        planned.num_places =
            std::max(planned.num_places, std::min(queue.num_messages, MessageBuffers::kSendSlots));
      } else if (queue.to_rank == rank) {
        planned.num_places = planned.queue.slots;
      }
    }
    for (std::int64_t chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const ChunkSlots& slots = schedule->slots_of({.rank = rank, .chunk = chunk});
      ChunkSlots& handed = result.handed[static_cast<std::size_t>(chunk)];
      handed.activations = std::max(handed.activations, slots.activations);
      handed.gradients = std::max(handed.gradients, slots.gradients);
    }
  }
  return result;
}

}  // namespace memphis
