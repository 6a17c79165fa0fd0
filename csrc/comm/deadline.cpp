// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/deadline.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "csrc/core/log.h"

namespace memphis {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::duration<double> kTick{0.05};
// Of a longer time between two ticks no more was waited.
constexpr std::chrono::duration<double> kMostOfTick{0.5};

}  // namespace

Deadline::Deadline(double seconds, ExitCode code, std::string cause)
    : Deadline(seconds, code, [cause = std::move(cause)] { return cause; }) {}

Deadline::Deadline(double seconds, ExitCode code, std::function<std::string()> cause) {
  if (seconds <= 0) {
    return;
  }
  thread_ = std::thread([this, seconds, code, cause = std::move(cause)] {
    std::unique_lock lock(mutex_);
    std::chrono::duration<double> left{seconds};
    auto last = Clock::now();
    while (left.count() > 0) {
      if (changed_.wait_for(lock, std::min(kTick, left), [this] { return met_; })) {
        return;
      }
      const auto now = Clock::now();
      left -= std::min<std::chrono::duration<double>>(now - last, kMostOfTick);
      last = now;
    }
    log_error("memphis: {}", cause());
    std::_Exit(static_cast<int>(code));  // the thread that waits holds what exit() would destroy
  });
}

Deadline::~Deadline() {
  {
    const std::lock_guard lock(mutex_);
    met_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
}

}  // namespace memphis
