// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "csrc/report/run_history.h"

namespace memphis {

// Something of a run that whoever opens its report is to see first.
struct Finding {
  enum class Weight : std::uint8_t { bad, odd, note };
  Weight weight = Weight::note;
  double step = 0;
  std::string title;   // "Loss exploded"
  std::string number;  // "7.42 nats, limit 5.56"
  std::string advice;
  bool outcome = false;  // how the run ended
};

// The gravest first, of these how the run ended, and the rest in the order of steps. Thresholds:
//
//   exploded      as csrc/train/loss_watch.h says, which the log warns by
//   spike         a loss above the median of the 64 before it by 6 of their deviations and a tenth
//   gradient      a norm above 10 times the median of the 64 before it
//   collapsed     as csrc/train/routing.h says
//   slow rank     a fifth longer than the rank in the middle, in half of the lines of the routing
//   stall         a step that takes 5 times the median of the 64 before it, and a second or more
//   slower        a tenth of the run at less than 0.85 of the best tenth before it
//   data          a tenth of the time of steps or more is reading
//   exchange      a fifth or more is waiting for others
//   validation    a twentieth above its lowest, in the last three
std::vector<Finding> find_what_stands_out(const RunHistory& run);

}  // namespace memphis
