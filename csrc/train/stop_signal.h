// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace memphis {

// While one exists, SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 ask the run to finish its step, save and
// return (exit code 10), instead of ending the process. A second SIGINT ends it at once. Schedulers
// send SIGUSR1 ahead of a time limit; mpirun passes it on at once, SIGTERM with a second's grace.
// One may live within another, which then still knows of a signal that came before it.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // The signal that came, or 0.
  int received() const;
};

}  // namespace memphis
