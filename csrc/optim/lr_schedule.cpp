// SPDX-License-Identifier: Apache-2.0
#include "csrc/optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "csrc/core/error.h"

namespace memphis {
namespace {

// How much of the way from `begin` to `end` lies behind `step`, in [0, 1].
double progress(std::int64_t step, std::int64_t begin, std::int64_t end) {
  if (step >= end) {
    return 1;
  }
  if (step <= begin) {
    return 0;
  }
  return static_cast<double>(step - begin) / static_cast<double>(end - begin);
}

}  // namespace

double learning_rate(const ScheduleConfig& schedule, double peak, std::int64_t step) {
  require(step >= 1, "steps are counted from 1");
  if (step <= schedule.warmup_steps) {
    return peak * static_cast<double>(step) / static_cast<double>(schedule.warmup_steps);
  }
  double height = 1;  // 1 at the peak, 0 at the end
  switch (schedule.decay) {
    case Decay::cosine: {
      const double way = progress(step, schedule.warmup_steps, schedule.steps);
      height = (1 + std::cos(std::numbers::pi * way)) / 2;
      break;
    }
    case Decay::wsd: {
      const std::int64_t begin =
          std::max(schedule.warmup_steps, schedule.steps - schedule.decay_steps);
      height = 1 - progress(step, begin, schedule.steps);
      break;
    }
    case Decay::constant:
      break;
  }
  return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * height);
}

}  // namespace memphis
