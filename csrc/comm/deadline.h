// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "csrc/core/error.h"

namespace memphis {

// For a call that waits for others, for ever if one is stopped, and that cannot be given up. Unless
// this is gone within `seconds`, it prints `cause` and ends the process, which nothing is left to
// do for, with `code`: what launched the job then ends the other ranks. 0 seconds: never. Time in
// which the process was kept from running, as one that a scheduler stops, does not count.
class Deadline {
 public:
  Deadline(double seconds, ExitCode code, std::string cause);
  // The cause is asked for when the time is up, on another thread.
  Deadline(double seconds, ExitCode code, std::function<std::string()> cause);
  ~Deadline();
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool met_ = false;
  std::thread thread_;
};

}  // namespace memphis
