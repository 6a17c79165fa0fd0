// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/covered_time.h"

#include <algorithm>

namespace memphis {

void CoveredTime::begin(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (num_open_++ == 0) {
    open_since_ = now;
  }
}

void CoveredTime::end(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (--num_open_ == 0) {
    spans_.emplace_back(open_since_, now);
  }
}

void CoveredTime::add(Clock::time_point begin, Clock::time_point end) {
  const std::lock_guard lock(mutex_);
  spans_.emplace_back(begin, end);
}

CoveredTime::Clock::duration CoveredTime::take(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  if (num_open_ > 0) {
    spans_.emplace_back(open_since_, now);
    open_since_ = now;
  }
  std::sort(spans_.begin(), spans_.end());
  Clock::duration covered{};
  Clock::time_point covered_to = taken_;  // what lies before was the last call's
  for (const auto& [begin, end] : spans_) {
    const Clock::time_point from = std::max(begin, covered_to);
    const Clock::time_point to = std::min(end, now);
    if (to > from) {
      covered += to - from;
      covered_to = to;
    }
  }
  spans_.clear();
  taken_ = now;
  return covered;
}

}  // namespace memphis
