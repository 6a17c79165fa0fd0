// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <string>

namespace memphis {

// Environment variables of a process, those that the functions below look at.
using Variables = std::map<std::string, std::string, std::less<>>;

Variables launch_variables();  // of this process

// When the scheduler ends the job, as it says: SLURM_JOB_END_TIME; empty where it does not.
std::string job_end_time();

// Where a process stands in its job.
struct Place {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among those of this machine
};

// Whether mpirun, or srun with a PMI plugin, started this process. Else it stands alone, also in a
// batch script that has several tasks to give. PreflightError if it is one of several that know
// nothing of each other: each would train by itself, and they would write the same files.
bool launched_by_mpi(const Variables& variables);

// The rank that the launcher has given to this process, before MPI says it; 0 if it has not.
int rank_of(const Variables& variables);

// PreflightError unless the launcher says what `library` ("MPI") says of this process.
void check_place(const Variables& variables, const Place& place, const std::string& library);

}  // namespace memphis
