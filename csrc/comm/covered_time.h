// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <mutex>
#include <utility>
#include <vector>

namespace memphis {

// For how long at least one of several things went on, which may overlap: the length of the union of
// their spans. Any thread may call.
class CoveredTime {
 public:
  using Clock = std::chrono::steady_clock;

  // One thing begins, or ends, now.
  void begin(Clock::time_point now);
  void end(Clock::time_point now);

  // One that is over, and was not announced.
  void add(Clock::time_point begin, Clock::time_point end);

  // What is covered of the time from the last call to `now`, or from construction. What still goes on
  // counts up to now, and from now on for the next call. It is never more than that time.
  Clock::duration take(Clock::time_point now);

 private:
  std::mutex mutex_;
  int num_open_ = 0;
  Clock::time_point open_since_;
  Clock::time_point taken_ = Clock::now();
  std::vector<std::pair<Clock::time_point, Clock::time_point>> spans_;
};

}  // namespace memphis
