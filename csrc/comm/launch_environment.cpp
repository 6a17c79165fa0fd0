// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/launch_environment.h"

#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr const char* kNames[] = {"OMPI_COMM_WORLD_RANK",
                                  "OMPI_COMM_WORLD_SIZE",
                                  "OMPI_COMM_WORLD_LOCAL_RANK",
                                  "PMIX_RANK",
                                  "PMI_RANK",
                                  "PMI_SIZE",
                                  "SLURM_PROCID",
                                  "SLURM_LOCALID",
                                  "SLURM_NTASKS",
                                  "SLURM_STEP_NUM_TASKS"};

constexpr std::string_view kStart =
    "start the job with `srun --mpi=pmix` (`srun --mpi=list` shows whether Slurm has it) or with "
    "mpirun";

// Nothing where the variable is not set.
std::optional<int> number(const Variables& variables, std::string_view name) {
  const auto found = variables.find(name);
  if (found == variables.end()) {
    return std::nullopt;
  }
  const std::string& text = found->second;
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    throw PreflightError(fmt::format(
        "{} is \"{}\" (a launcher sets it to a number); unset it, or {}", name, text, kStart));
  }
  return value;
}

// Tasks of the Slurm step that this process is one of; 1 outside of a step. A batch script is no
// step of several tasks, whatever SLURM_NTASKS says of what it may start.
int num_step_tasks(const Variables& variables) {
  if (!number(variables, "SLURM_PROCID")) {
    return 1;
  }
  return number(variables, "SLURM_STEP_NUM_TASKS").value_or(1);
}

[[noreturn]] void throw_singletons(const Variables& variables, std::string_view why) {
  throw PreflightError(
      fmt::format("this is task {} of the {} of a Slurm step, and it is alone ({}: "
                  "SLURM_PROCID={}, SLURM_STEP_NUM_TASKS={}); {}",
                  number(variables, "SLURM_PROCID").value_or(0),
                  num_step_tasks(variables),
                  why,
                  number(variables, "SLURM_PROCID").value_or(0),
                  num_step_tasks(variables),
                  kStart));
}

}  // namespace

Variables launch_variables() {
  Variables variables;
  for (const char* name : kNames) {
    if (const char* value = std::getenv(name)) {
      variables.emplace(name, value);
    }
  }
  return variables;
}

std::string job_end_time() {
  const char* const value = std::getenv("SLURM_JOB_END_TIME");
  return value == nullptr ? std::string() : std::string(value);
}

bool launched_by_mpi(const Variables& variables) {
  for (const std::string_view name :
       {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"}) {
    if (number(variables, name)) {
      return true;
    }
  }
  if (num_step_tasks(variables) > 1) {
    throw_singletons(variables, "srun set no variable of PMIx or PMI");
  }
  return false;
}

int rank_of(const Variables& variables) {
  for (const std::string_view name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (const std::optional<int> rank = number(variables, name)) {
      return *rank;
    }
  }
  return 0;
}

void check_place(const Variables& variables, const Place& place, const std::string& library) {
  const auto expect = [&](std::string_view name, std::string_view what, int value) {
    const std::optional<int> launched = number(variables, name);
    if (launched && *launched != value) {
      throw PreflightError(
          fmt::format("{}={}, but the {} is {} ({} says so: it does not belong to "
                      "the launcher); {}, and with the MPI that memphis is built "
                      "with",
                      name,
                      *launched,
                      what,
                      value,
                      library,
                      kStart));
    }
  };
  // Under mpirun the variables of Slurm are those of mpirun's daemons, one a machine.
  if (number(variables, "OMPI_COMM_WORLD_SIZE")) {
    expect("OMPI_COMM_WORLD_SIZE", "number of ranks", place.size);
    expect("OMPI_COMM_WORLD_RANK", "rank", place.rank);
    expect("OMPI_COMM_WORLD_LOCAL_RANK", "rank on this machine", place.local_rank);
    return;
  }
  if (num_step_tasks(variables) > 1 && place.size == 1) {
    throw_singletons(variables, library + " knows of one rank");
  }
  expect("PMI_SIZE", "number of ranks", place.size);
  expect("PMI_RANK", "rank", place.rank);
  expect("PMIX_RANK", "rank", place.rank);
  if (num_step_tasks(variables) > 1) {
    expect("SLURM_STEP_NUM_TASKS", "number of ranks", place.size);
    expect("SLURM_PROCID", "rank", place.rank);
    expect("SLURM_LOCALID", "rank on this machine", place.local_rank);
  }
}

}  // namespace memphis
