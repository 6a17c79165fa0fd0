// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/launch_environment.h"

#include <string>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

struct Start {
  std::string name;
  Variables variables;
  bool by_mpi;
  Place place;  // what MPI says, which holds
};

const Start kGood[] = {
    {"a shell", {}, false, {}},
    {"a batch script of eight tasks",
     {{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}},
     false,
     {}},
    {"a batch script whose own step is named",
     {{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}},
     false,
     {}},
    {"a shell of salloc", {{"SLURM_NTASKS", "8"}}, false, {}},
    {"srun of one task", {{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}}, false, {}},
    {"mpirun",
     {{"OMPI_COMM_WORLD_SIZE", "4"},
      {"OMPI_COMM_WORLD_RANK", "3"},
      {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
      {"PMIX_RANK", "3"}},
     true,
     {3, 4, 1}},
    {"mpirun of one rank", {{"OMPI_COMM_WORLD_SIZE", "1"}, {"PMIX_RANK", "0"}}, true, {0, 1, 0}},
    {"mpirun in a Slurm job, whose step is of daemons",
     {{"OMPI_COMM_WORLD_SIZE", "16"},
      {"OMPI_COMM_WORLD_RANK", "9"},
      {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
      {"PMIX_RANK", "9"},
      {"SLURM_PROCID", "1"},
      {"SLURM_LOCALID", "0"},
      {"SLURM_STEP_NUM_TASKS", "2"}},
     true,
     {9, 16, 1}},
    {"srun --mpi=pmix",
     {{"PMIX_RANK", "5"},
      {"SLURM_PROCID", "5"},
      {"SLURM_LOCALID", "1"},
      {"SLURM_STEP_NUM_TASKS", "8"}},
     true,
     {5, 8, 1}},
    {"mpiexec of MPICH", {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}, true, {1, 2, 1}},
};

TEST(LaunchEnvironment, KnowsWhoStartedTheProcess) {
  for (const Start& start : kGood) {
    EXPECT_EQ(launched_by_mpi(start.variables), start.by_mpi) << start.name;
    EXPECT_EQ(rank_of(start.variables), start.place.rank) << start.name;
    EXPECT_NO_THROW(check_place(start.variables, start.place, "MPI")) << start.name;
  }
}

struct Refused {
  std::string name;
  Variables variables;
  Place place;  // what MPI says
  std::string text;
};

const Refused kBad[] = {
    {"srun without a plugin",
     {{"SLURM_PROCID", "2"}, {"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_NTASKS", "4"}},
     {},
     "this is task 2 of the 4 of a Slurm step, and it is alone (srun set no variable of PMIx or "
     "PMI: "
     "SLURM_PROCID=2, SLURM_STEP_NUM_TASKS=4); start the job with `srun --mpi=pmix` "},
    {"srun with another plugin than MPI has",
     {{"PMI_RANK", "2"}, {"PMI_SIZE", "4"}, {"SLURM_PROCID", "2"}, {"SLURM_STEP_NUM_TASKS", "4"}},
     {0, 1, 0},
     "this is task 2 of the 4 of a Slurm step, and it is alone (MPI knows of one rank: "
     "SLURM_PROCID=2, SLURM_STEP_NUM_TASKS=4); start the job with `srun --mpi=pmix` "},
    {"mpirun of another MPI",
     {{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "0"}},
     {0, 1, 0},
     "OMPI_COMM_WORLD_SIZE=4, but the number of ranks is 1 (MPI says so"},
    {"mpiexec of MPICH",
     {{"PMI_SIZE", "4"}, {"PMI_RANK", "0"}},
     {0, 1, 0},
     "PMI_SIZE=4, but the number of ranks is 1 (MPI says so"},
    {"another rank",
     {{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "2"}},
     {1, 4, 1},
     "OMPI_COMM_WORLD_RANK=2, but the rank is 1 (MPI says so"},
    {"another rank on the machine",
     {{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}},
     {1, 4, 1},
     "OMPI_COMM_WORLD_LOCAL_RANK=0, but the rank on this machine is 1 (MPI says so"},
    {"another size of the step",
     {{"PMIX_RANK", "1"}, {"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "8"}},
     {1, 4, 1},
     "SLURM_STEP_NUM_TASKS=8, but the number of ranks is 4 (MPI says so"},
    {"another task of the step",
     {{"PMIX_RANK", "1"}, {"SLURM_PROCID", "3"}, {"SLURM_STEP_NUM_TASKS", "4"}},
     {1, 4, 1},
     "SLURM_PROCID=3, but the rank is 1 (MPI says so"},
    {"no number",
     {{"OMPI_COMM_WORLD_SIZE", "four"}},
     {},
     "OMPI_COMM_WORLD_SIZE is \"four\" (a launcher sets it to a number); unset it"},
    {"a number and more",
     {{"OMPI_COMM_WORLD_SIZE", "4x"}},
     {},
     "OMPI_COMM_WORLD_SIZE is \"4x\" (a launcher sets it to a number); unset it"},
    {"a negative number",
     {{"PMI_SIZE", "-4"}},
     {},
     "PMI_SIZE is \"-4\" (a launcher sets it to a number); unset it"},
};

TEST(LaunchEnvironment, RefusesRanksThatAreAloneOrMistaken) {
  for (const Refused& start : kBad) {
    const std::string text = test::error_text<PreflightError>([&] {
      EXPECT_TRUE(launched_by_mpi(start.variables)) << start.name;
      check_place(start.variables, start.place, "MPI");
    });
    EXPECT_EQ(text.substr(0, start.text.size()), start.text) << start.name;
    EXPECT_TRUE(test::follows_grammar(text)) << start.name;
  }
}

}  // namespace
}  // namespace memphis
