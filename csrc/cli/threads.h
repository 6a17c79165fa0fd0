// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/comm/communicator.h"

namespace memphis {

// Sets how many threads the parallel regions of the calling thread have (plan/threads.h), for a
// process that works alone. ConfigError where OMP_NUM_THREADS asks for what can only be a mistake.
void use_cores();

// The same for a rank of `world`, which shares the machine's cores with its other ranks. The first
// rank of the job says what came out, and the first of each machine what is amiss.
void share_cores(World& world);

}  // namespace memphis
