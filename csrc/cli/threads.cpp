// SPDX-License-Identifier: Apache-2.0
#include "csrc/cli/threads.h"

#include <cstdlib>

#include <omp.h>

#include "csrc/comm/launch_environment.h"
#include "csrc/comm/sharing.h"
#include "csrc/comm/together.h"
#include "csrc/core/log.h"
#include "csrc/core/memory_pools.h"
#include "csrc/plan/threads.h"

namespace memphis {
namespace {

// Of what OMP_NUM_THREADS says libgomp has made a number; it has said so if that was none.
std::optional<int> asked_threads() {
  const char* const text = std::getenv("OMP_NUM_THREADS");
  if (text == nullptr || std::atoi(text) != omp_get_max_threads()) {
    return std::nullopt;
  }
  return omp_get_max_threads();
}

ThreadPlan use(ThreadSurroundings surroundings) {
  surroundings.cores = cores_of_process();
  surroundings.asked = asked_threads();
  ThreadPlan plan = plan_threads(surroundings);
  omp_set_num_threads(plan.num_threads);
  return plan;
}

}  // namespace

void use_cores() {
  use({});
}

void share_cores(World& world) {
  const auto all = create_group_of_all(world);
  const Sharing machine = sum_of_those_with(*all, {machine_identity(), 0}, 1, "machine.ranks");
  const ThreadPlan plan = use({.cores = {},
                               .num_local_ranks = static_cast<int>(machine.num_ranks),
                               .was_launched = launched_by_mpi(launch_variables()),
                               .asked = {}});
  if (world.rank() == 0) {
    log_info("{}", plan.says);
  }
  if (world.local_rank() == 0 && !plan.warning.empty()) {
    log_warning("{}", plan.warning);
  }
}

}  // namespace memphis
