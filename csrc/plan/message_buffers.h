// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/core/tensor.h"
#include "csrc/plan/schedule_messages.h"

namespace memphis {

// The memory of what crosses from stage to stage, on one rank: the residual stream behind a stage's
// last layer, or its gradient.
//
// A message leaves from a place of its own, because what follows writes over the tensor that it is
// made of, and arrives in one of as many as its queue has slots. What two stages of one rank hand
// each other lies in places too, from the action that makes it to the one that needs it.
struct MessageBuffers {
  // Two: one message is on its way while the next is made.
  static constexpr std::int64_t kSendSlots = 2;

  struct Queue {
    MessageQueue queue;           // its slots: the most of all schedules
    std::int64_t num_places = 0;  // of this rank; 0 where it is at neither end
  };

  std::int64_t rank = 0;           // along Axis::pipeline
  TensorSpec message_TD;           // [residual_T, D]
  std::vector<Queue> queues;       // by message_queues of the shape, whichever pass it is
  std::vector<ChunkSlots> handed;  // to each chunk, by another of this rank

  std::size_t bytes() const;
};

// For all of `schedules`, which are passes of one shape.
MessageBuffers plan_message_buffers(const std::vector<const PipelineSchedule*>& schedules,
                                    std::int64_t rank,
                                    const TensorSpec& message_TD);

}  // namespace memphis
