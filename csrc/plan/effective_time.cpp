// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/effective_time.h"

#include <algorithm>
#include <cmath>

namespace memphis {

EffectiveTime effective_time(const Interruptions& interruptions) {
  const double M = interruptions.seconds_between_failures;
  const double d = interruptions.save_seconds;
  EffectiveTime result;
  result.interval_seconds = std::max(std::sqrt(2 * M * d), d);
  const double t = result.interval_seconds;
  result.lost_seconds = t / 2;
  const double saves = t > 0 ? d / t : 0;
  result.share = 1 / (1 + saves + (result.lost_seconds + interruptions.restart_seconds) / M);
  return result;
}

Interruptions interruptions_of(const Machine& machine, std::int64_t num_ranks, double state_bytes) {
  constexpr double kSecondsOfHour = 3600;
  return {.seconds_between_failures =
              machine.rank_hours_between_failures * kSecondsOfHour / static_cast<double>(num_ranks),
          .save_seconds = state_bytes / (machine.save_gb_per_second * 1e9),
          .restart_seconds = machine.restart_seconds};
}

double watts_of_rank(const Machine& machine, const StepTime& time, Products products) {
  const double large = products == Products::f32    ? machine.large_f32_tflops
                       : products == Products::bf16 ? machine.large_bf16_tflops
                                                    : machine.large_fp8_tflops;
  const double share = std::min(time.model_tflops / large, 1.0);
  return machine.idle_watts + share * (machine.busy_watts - machine.idle_watts);
}

}  // namespace memphis
