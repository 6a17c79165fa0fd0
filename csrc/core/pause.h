// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace memphis {

// Between two looks at what somebody else does. Yields at first, as most things take microseconds
// and a sleep comes on top; then sleeps, 1 us and twice as long each time up to `longest`, so that
// who waits for longer leaves the core to others.
class Pause {
 public:
  Pause(int num_yields, std::chrono::microseconds longest)
      : num_yields_(num_yields), longest_(longest) {}

  void operator()() {
    if (count_ < num_yields_) {
      ++count_;
      std::this_thread::yield();
      return;
    }
    std::this_thread::sleep_for(sleep_);
    sleep_ = std::min(2 * sleep_, longest_);
  }

  // Something has happened.
  void reset() {
    count_ = 0;
    sleep_ = kShortest;
  }

 private:
  static constexpr std::chrono::microseconds kShortest{1};

  int num_yields_;
  std::chrono::microseconds longest_;
  int count_ = 0;
  std::chrono::microseconds sleep_ = kShortest;
};

}  // namespace memphis
