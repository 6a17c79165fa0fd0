// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

#include "csrc/core/file_calls.h"

namespace memphis {

// Keeps other jobs out of a run directory as long as it lives: two in one would delete what the
// other is writing. The first rank has it for all. The lock is the system's, on the file `lock`
// there, and goes with the process however that ends.
class RunLock {
 public:
  // For how long the end of a job that was killed may go unnoticed: its last process may be about
  // to end, and a server of files hears nothing of a machine that is gone.
  struct Patience {
    std::chrono::milliseconds here{std::chrono::seconds(10)};
    std::chrono::milliseconds elsewhere{std::chrono::seconds(120)};
  };

  // Where another job has it, waits for its end. PreflightError, naming that job, if it is there
  // after all. Where the file system has no locks, a warning.
  explicit RunLock(const std::filesystem::path& run_dir, const Patience& patience);
  explicit RunLock(const std::filesystem::path& run_dir) : RunLock(run_dir, Patience()) {}

  // Waits, as above, until no other job has it, without taking it or making anything: what is read
  // of the directory then is of a job that has ended.
  static void await_free(const std::filesystem::path& run_dir, const Patience& patience);
  static void await_free(const std::filesystem::path& run_dir) { await_free(run_dir, Patience()); }

  // PreflightError where the run directory is no longer the one that was locked: it was deleted,
  // moved away or replaced, and what lies at its path now, or will, is of somebody whom the lock
  // does not keep out. To be asked before anything is written there.
  void require_held() const;

  // The job that has it: "process 4711 on node7". Nothing where none has.
  static std::optional<std::string> owner(const std::filesystem::path& run_dir);

 private:
  std::filesystem::path run_dir_;
  Descriptor descriptor_;
};

}  // namespace memphis
