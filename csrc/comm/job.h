// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "csrc/comm/communicator.h"

namespace memphis {

// Calls `body` as one rank of the job that mpirun or srun started, or as its only rank. An error
// that this rank alone knows of is printed with its rank and ends the job on all of them; one that
// all ranks meet the first prints. Either is thrown on as FailedElsewhere. Behind the body ranks wait
// for each other, within the limits of their activity.
void run_as_job(const std::function<void(World&)>& body);

}  // namespace memphis
