// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "csrc/comm/communicator.h"

namespace memphis {

// The job that this process was started in: all that mpirun or `srun --mpi=pmix` started, or this
// one alone. Once in a process, before its threads; groups go before it. PreflightError where the
// launcher and MPI disagree, or where the build has no MPI and there are others (no_mpi.cpp).
std::unique_ptr<World> make_world();

}  // namespace memphis
