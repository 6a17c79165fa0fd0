// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>

#include "csrc/config/config.h"

// The files of run.dir that a start opens or writes anew.
namespace memphis {

inline constexpr const char* kRunConfigName = "config.yaml";  // the config as it was resolved
inline constexpr const char* kMetricsName = "metrics.jsonl";
inline constexpr const char* kLockName = "lock";

// ConfigError where what has one of their names is no file, as a pipe, which would be waited for;
// and where config.yaml is one that no run wrote: it begins with another line than a run's, and
// nothing else says that the directory is a run's, as of one of an earlier version. To be asked
// before anything is saved there.
void require_own_files(const std::filesystem::path& run_dir);

// Durable on return. CheckpointError where it cannot be written.
void write_run_config(const std::filesystem::path& run_dir, const Config& config);

// Removes what starts that were killed left beside these files, with a log line each. The caller
// has the run's lock.
void remove_left_files(const std::filesystem::path& run_dir);

}  // namespace memphis
