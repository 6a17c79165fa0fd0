// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/plan/schedule_messages.h"

// What a schedule costs, event by event. Units are the caller's: seconds, or passes of a stage.
namespace memphis {

// Of one micro-batch in a stage. `backward` takes backward_inputs + backward_weights.
struct StageCost {
  double forward = 1;
  double backward_inputs = 1;
  double backward_weights = 1;
  double activation = 1;  // what is kept for it, in any unit of memory

  bool operator==(const StageCost&) const = default;
};

// Of each message.
struct MessageCost {
  double latency = 0;
  double bytes = 0;
  double bytes_per_second =
      0;  // of a queue, which carries one message after the other; 0: no limit
  // Messages travel while both ranks work, and delay only what waits for them. If not, the sender
  // waits until its message has arrived.
  bool overlapped = true;

  double transfer() const { return bytes_per_second > 0 ? bytes / bytes_per_second : 0; }
};

struct PipelineCosts {
  std::vector<StageCost> stages;  // one for each
  MessageCost message;
};

struct RankSimulation {
  double busy = 0;                  // in actions
  double idle = 0;                  // makespan - busy
  double peak_activations = 0;      // StageCost::activation of all micro-batches held at one time
  double peak_pending_weights = 0;  // of those between the end of I and that of W
};

struct PipelineSimulation {
  double makespan = 0;      // from the first action's begin to the last one's end
  double bubble_share = 0;  // idle time of all ranks, of all of their time
  std::vector<RankSimulation> ranks;
  // Of each queue: messages made and not yet used up at one time, those counted too whose use ends
  // just then.
  std::vector<std::int64_t> peak_messages;
};

// Of a schedule that check_schedule accepts, or would with more slots; a queue with 0 of them has
// room for all its messages. ContractError if there is not one cost for each stage, or ranks wait
// for each other.
PipelineSimulation simulate(const PipelineSchedule& schedule, const PipelineCosts& costs);

}  // namespace memphis
