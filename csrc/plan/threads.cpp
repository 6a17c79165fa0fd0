// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/threads.h"

#include <algorithm>
#include <cmath>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

// More threads than cores are allowed, for what little it costs to try it; beyond this a number is
// taken for a mistake (each thread has a stack and a share of an op's scratch memory).
constexpr int kMaxThreadsPerCore = 16;
constexpr int kMaxThreadsAnywhere = 256;

std::string counted(int count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

}  // namespace

ThreadPlan plan_threads(const ThreadSurroundings& surroundings) {
  const Cores& cores = surroundings.cores;
  if (surroundings.asked) {
    const int most = std::max(kMaxThreadsAnywhere, kMaxThreadsPerCore * cores.machine);
    if (*surroundings.asked > most) {
      throw ConfigError(
          fmt::format("OMP_NUM_THREADS is {} (this machine has {}, and more than {} threads are "
                      "taken for a mistake); unset it, or set it to {} or less",
                      *surroundings.asked,
                      counted(cores.machine, "core"),
                      most,
                      cores.allowed));
    }
  }
  // Time that control groups do not give is nobody's.
  const auto within_quota = [&](int count) {
    return cores.quota ? std::min(count, static_cast<int>(std::ceil(*cores.quota))) : count;
  };
  // What the launcher has for all ranks of the machine.
  const int there_is = within_quota(
      surroundings.was_launched ? std::max(cores.parent, cores.allowed) : cores.allowed);
  const int share = std::max(1, there_is / surroundings.num_local_ranks);
  const int usable = std::max(1, within_quota(cores.allowed));
  ThreadPlan plan;
  plan.num_threads = surroundings.asked.value_or(std::min(share, usable));
  plan.says = fmt::format("{} a rank, {} on this machine, which may use {} of its {}",
                          counted(plan.num_threads, "thread"),
                          counted(surroundings.num_local_ranks, "rank"),
                          usable,
                          counted(cores.machine, "core"));
  if (cores.quota && *cores.quota < cores.allowed) {
    plan.says += fmt::format(" (a control group gives it the time of {:.3g})", *cores.quota);
  }
  const int wanted = std::min(share, surroundings.asked.value_or(share));
  if (surroundings.was_launched && cores.allowed < wanted) {
    plan.warning = fmt::format(
        "this rank may use {} of {} (its launcher bound it; mpirun binds a rank to one core where "
        "it is not told otherwise), and its share is {}; start the job with `mpirun --bind-to "
        "none` or `srun --cpus-per-task={}`",
        cores.allowed,
        counted(cores.machine, "core"),
        share,
        share);
  } else if (plan.num_threads * surroundings.num_local_ranks > there_is &&
             plan.num_threads > share) {
    plan.warning = fmt::format(
        "{} of {} share {} (more threads than cores wait for each other); unset OMP_NUM_THREADS, "
        "or set it to {}",
        counted(plan.num_threads, "thread"),
        surroundings.num_local_ranks == 1
            ? "this process"
            : fmt::format("each of {} ranks", surroundings.num_local_ranks),
        counted(there_is, "core"),
        share);
  }
  return plan;
}

}  // namespace memphis
