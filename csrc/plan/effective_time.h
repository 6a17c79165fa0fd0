// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/plan/machine.h"
#include "csrc/plan/step_time.h"

// What becomes of a step's time over a long run: failures, saves and restarts, and the energy of it.
namespace memphis {

struct Interruptions {
  double seconds_between_failures = 0;  // of the job
  double save_seconds = 0;              // that training stops for at each save
  double restart_seconds = 0;           // from a failure to the first new step
};

// Young's interval: that between saves at which what saves take and what failures lose are least, if
// failures come at any time alike; and what is then left. J. W. Young, A first order approximation to
// the optimum checkpoint interval, 1974.
struct EffectiveTime {
  double interval_seconds = 0;  // sqrt(2 M d), of failures M apart and saves of d; d at least
  double share = 1;             // of the time, steps that count: 1 / (1 + d/t + t/2M + R/M)
  double lost_seconds = 0;      // of steps done again after a failure, on average
};
EffectiveTime effective_time(const Interruptions& interruptions);

// Of `num_ranks` of a machine, whose rank has `state_bytes` to save.
Interruptions interruptions_of(const Machine& machine, std::int64_t num_ranks, double state_bytes);

// Watts of a rank: between those at rest and those of large products, by the share of the large
// products' rate that the model's FLOP reach.
double watts_of_rank(const Machine& machine, const StepTime& time, Products products);

}  // namespace memphis
