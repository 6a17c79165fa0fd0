// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/core/device.h"
#include "csrc/core/pause.h"

// How the host waits for the device: of device.cpp, and of a device_*.cpp in which the host waits
// where a GPU's stream would.
namespace memphis {

// That of set_gpu_watch; null if there is none.
GpuWatch* gpu_watch() noexcept;

// The CPU waits for the device, for the counts.
void note_host_wait() noexcept;

// How often the CPU of this process has waited so far, for a stream, for an event, or in a call that
// waits by itself: what is copied from or to memory that is not page-locked, or freed.
std::uint64_t host_wait_count();

// Returns when done(), which asks the device. Throws what the watch does.
template <class Done>
void poll(const Done& done, GpuWatch& watch, Pause pause) {
  // Who does not wait has nothing to leave, and may hold what the watch would lock.
  if (done()) {
    return;
  }
  struct Wait {
    GpuWatch& watch;
    ~Wait() { watch.leave(); }
  } const wait{watch};
  do {
    watch.check();
    pause();
  } while (!done());
}

}  // namespace memphis
