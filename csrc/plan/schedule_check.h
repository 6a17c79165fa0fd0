// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "csrc/plan/schedule.h"
#include "csrc/plan/schedule_messages.h"

// Whether lists of actions can be run: what make_actions promises, and that no rank waits forever.
// Every error is a ContractError that names the action at fault, its place in its rank's list and
// the action that it contradicts.
namespace memphis {

// The lists of all ranks, each by itself: stages lie on their ranks; each stage has each
// micro-batch once in F and once in B, or in I and in W, F before I before W; each of the three
// comes in ascending order of micro-batches; what a stage needs of a neighbour on its own rank is
// there.
void check_actions(const PipelineShape& shape, const std::vector<std::vector<Action>>& actions);

// All of it, messages too: each is sent once, right after what makes it, and received once, right
// before what needs it; both sides count them alike; slots are enough; and with these slots no rank
// waits in a circle with others, however long actions and messages take.
void check_schedule(const PipelineSchedule& schedule);

}  // namespace memphis
