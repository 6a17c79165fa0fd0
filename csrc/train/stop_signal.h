// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

namespace memphis {

// While one exists, SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 ask the run to save and return
// (exit code 10), instead of ending the process. A second SIGINT ends it at once. Schedulers send
// SIGUSR1 ahead of a time limit; mpirun passes it on at once, SIGTERM with a second's grace. A
// SIGHUP that was ignored before the first of them, as nohup has it, stays ignored. One may live
// within another, which then still knows of a signal that came before it.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // The signal that came, or 0.
  int received() const;
};

// While one exists, and until a StopSignal is made after it, there is nothing to save: a signal to
// a StopSignal that was made before it has `end` called with it, at once and on a thread of its own
// while whatever goes on goes on. `end` ends the process. One at a time.
class NothingToSave {
 public:
  explicit NothingToSave(std::function<void(int signal)> end);
  ~NothingToSave();
  NothingToSave(const NothingToSave&) = delete;
  NothingToSave& operator=(const NothingToSave&) = delete;
};

}  // namespace memphis
