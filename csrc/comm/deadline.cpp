// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/deadline.h"

#include <chrono>
#include <cstdlib>
#include <utility>

#include "csrc/core/log.h"

namespace memphis {

Deadline::Deadline(double seconds, ExitCode code, std::string cause)
    : Deadline(seconds, code, [cause = std::move(cause)] { return cause; }) {}

Deadline::Deadline(double seconds, ExitCode code, std::function<std::string()> cause) {
  if (seconds <= 0) {
    return;
  }
  thread_ = std::thread([this, seconds, code, cause = std::move(cause)] {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return met_; })) {
      log_error("memphis: {}", cause());
      std::_Exit(static_cast<int>(code));  // the thread that waits holds what exit() would destroy
    }
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
