// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "csrc/core/cores.h"

namespace memphis {

// Where a rank's threads run.
struct ThreadSurroundings {
  Cores cores;
  int num_local_ranks = 1;        // of the job, on this machine
  bool was_launched = false;      // by mpirun or srun, which bind a rank to cores of their choice
  std::optional<int> asked = {};  // by OMP_NUM_THREADS
};

struct ThreadPlan {
  int num_threads = 1;  // of this rank
  std::string says;     // "2 threads a rank, 1 rank on 2 of 2 cores"
  std::string warning;  // empty where nothing is amiss
};

// As many threads as asked for; else the rank's share of the cores that it may use. Warns where a
// launcher has bound the rank to fewer cores than its share, and where threads outnumber cores.
// ConfigError where so many are asked for that it can only be a mistake.
ThreadPlan plan_threads(const ThreadSurroundings& surroundings);

}  // namespace memphis
