// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/cores.h"

#include <algorithm>

#include <sched.h>
#include <unistd.h>

#include "csrc/core/control_groups.h"

namespace memphis {
namespace {

// 0 where the system does not say.
int num_allowed(pid_t process) {
  // Larger than any machine's: the system refuses a mask that does not hold its processors.
  constexpr int kMaxProcessors = 1 << 16;
  cpu_set_t* const mask = CPU_ALLOC(kMaxProcessors);
  const std::size_t bytes = CPU_ALLOC_SIZE(kMaxProcessors);
  const int count = sched_getaffinity(process, bytes, mask) == 0 ? CPU_COUNT_S(bytes, mask) : 0;
  CPU_FREE(mask);
  return count;
}

}  // namespace

Cores cores_of_process() {
  Cores cores;
  cores.machine = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  const int allowed = num_allowed(0);
  cores.allowed = allowed > 0 ? allowed : cores.machine;
  const int parent = num_allowed(getppid());
  cores.parent = parent > 0 ? parent : cores.machine;
  cores.quota = read_control_group_limits().cores;
  return cores;
}

}  // namespace memphis
