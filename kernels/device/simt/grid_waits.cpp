// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/grid_waits.h"

namespace memphis::kernels::simt {

std::uint64_t GridWaits::num_writes() {
  const std::lock_guard lock(mutex_);
  return num_writes_;
}

void GridWaits::note_write() {
  const std::lock_guard lock(mutex_);
  ++num_writes_;
  num_waiting_ = 0;  // all of them look again
  changed_.notify_all();
}

bool GridWaits::wait_beyond(std::uint64_t num_writes) {
  std::unique_lock lock(mutex_);
  if (num_writes_ != num_writes) {
    return true;
  }
  if (++num_waiting_ == num_running_) {
    over_ = true;
    changed_.notify_all();
  }
  changed_.wait(lock, [&] { return over_ || num_writes_ != num_writes; });
  return !over_;
}

void GridWaits::leave() {
  const std::lock_guard lock(mutex_);
  --num_running_;
  if (num_waiting_ > 0 && num_waiting_ == num_running_) {
    over_ = true;
    changed_.notify_all();
  }
}

void GridWaits::abandon() {
  const std::lock_guard lock(mutex_);
  over_ = true;
  changed_.notify_all();
}

}  // namespace memphis::kernels::simt
