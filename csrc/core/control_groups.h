// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace memphis {

// What the control groups of this process allow it, the groups around its own included: containers,
// Slurm jobs and systemd's units are such groups.
struct ControlGroupLimits {
  struct Memory {
    std::size_t limit_bytes = 0;
    std::size_t free_bytes = 0;  // of that: what is used for more than a cache of files is not
    std::string file;            // that sets it
    std::uint64_t group = 0;     // which group of the machine that is, whatever path leads to it
  };
  std::optional<Memory> memory;  // the limit that leaves the least, if there is one
  std::optional<double> cores;   // of processor time, the least; empty where nothing limits it
};

// Versions 1 and 2, and machines that have both. Finds nothing where there are none, and reads
// below `root`, where the system's files are.
//
// Source      Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst;
//             proc(5), mountinfo.
ControlGroupLimits read_control_group_limits(const std::filesystem::path& root = "/");

}  // namespace memphis
