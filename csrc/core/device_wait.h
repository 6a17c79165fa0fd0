// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/device.h"
#include "csrc/core/pause.h"

// How the host waits for the device: of device.cpp, and of a device_*.cpp in which the host waits
// where a GPU's stream would.
namespace memphis {

// That of set_gpu_watch; null if there is none.
GpuWatch* gpu_watch() noexcept;

// The CPU has waited for the device, for stall_count().
void note_host_wait() noexcept;

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
