// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "csrc/plan/schedule_messages.h"
#include "csrc/plan/schedule_simulation.h"

// For the files of the schedule in this folder: what checks and prices walks over all steps.
namespace memphis {

// Visits the steps so that each comes after the one before it in its rank's list, a receive after
// its send, and a send after the action that frees its slot (of a queue without slots, at once).
// The order between ranks is of no meaning. Both sides of each queue count from 0.
class ScheduleReplay {
 public:
  explicit ScheduleReplay(const PipelineSchedule& schedule)
      : schedule_(schedule),
        next_(schedule.ranks.size(), 0),
        received_(schedule.ranks.size(), {-1, -1}),
        waits_for_(schedule.ranks.size(), -1),
        sent_(schedule.queues.size(), 0),
        used_up_(schedule.queues.size(), 0) {}

  // Calls visit(rank, step, queue), with the queue whose message an action uses up, or -1. False if
  // ranks are left that wait for each other.
  template <class Visit>
  bool run(const Visit& visit) {
    std::vector<std::size_t> ready;
    for (std::size_t rank = schedule_.ranks.size(); rank-- > 0;) {
      ready.push_back(rank);
    }
    std::size_t ended = 0;
    while (!ready.empty()) {
      const std::size_t rank = ready.back();
      ready.pop_back();
      const std::vector<ScheduleStep>& steps = schedule_.ranks[rank];
      std::size_t& next = next_[rank];
      while (next < steps.size() && !waits(rank, steps[next])) {
        const ScheduleStep& step = steps[next++];
        const auto queue = static_cast<std::size_t>(step.queue);
        if (step.kind == StepKind::receive) {
          received(rank, step) = step.queue;
          visit(rank, step, std::int32_t{-1});
        } else if (step.kind == StepKind::send) {
          ++sent_[queue];
          visit(rank, step, std::int32_t{-1});
          wake(schedule_.queues[queue].to_rank, 2 * step.queue, ready);
        } else {
          const std::int32_t used = std::exchange(received(rank, step), -1);
          visit(rank, step, used);
          if (used >= 0) {
            ++used_up_[static_cast<std::size_t>(used)];
            wake(schedule_.queues[static_cast<std::size_t>(used)].from_rank, 2 * used + 1, ready);
          }
        }
      }
      ended += next == steps.size() ? 1 : 0;
    }
    return ended == schedule_.ranks.size();
  }

  // Where a rank has come to.
  std::size_t next(std::size_t rank) const { return next_[rank]; }

 private:
  std::int32_t& received(std::size_t rank, const ScheduleStep& step) {
    return received_[rank][step.action.kind == ActionKind::forward ? 0 : 1];
  }

  bool waits(std::size_t rank, const ScheduleStep& step) {
    const auto queue = static_cast<std::size_t>(step.queue);
    if (step.kind == StepKind::receive && sent_[queue] <= step.sequence) {
      waits_for_[rank] = 2 * step.queue;
      return true;
    }
    if (step.kind == StepKind::send) {
      const std::int64_t slots = schedule_.queues[queue].slots;
      if (slots > 0 && used_up_[queue] + slots <= step.sequence) {
        waits_for_[rank] = 2 * step.queue + 1;
        return true;
      }
    }
    return false;
  }

  void wake(std::int64_t rank, std::int32_t reason, std::vector<std::size_t>& ready) {
    const auto woken = static_cast<std::size_t>(rank);
    if (waits_for_[woken] == reason) {
      waits_for_[woken] = -1;
      ready.push_back(woken);
    }
  }

  const PipelineSchedule& schedule_;
  std::vector<std::size_t> next_;
  // The queues of the messages for the next forward and the next backward pass.
  std::vector<std::array<std::int32_t, 2>> received_;
  std::vector<std::int32_t> waits_for_;  // twice the queue, and 1 more if for a slot; -1: nothing
  std::vector<std::int64_t> sent_;
  std::vector<std::int64_t> used_up_;
};

// simulate(), or nothing where ranks wait for each other.
std::optional<PipelineSimulation> simulate_if_it_ends(const PipelineSchedule& schedule,
                                                      const PipelineCosts& costs);

}  // namespace memphis
