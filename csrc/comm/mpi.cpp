// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/comm/deadline.h"
#include "csrc/comm/host_communicator.h"
#include "csrc/comm/launch_environment.h"
#include "csrc/comm/mpi_check.h"
#include "csrc/comm/mpi_transport.h"
#include "csrc/comm/mpi_watchdog.h"
#include "csrc/comm/nccl.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/world.h"

namespace memphis {
namespace {

// Nothing is said of a job that has not started: its processes may start minutes apart.
constexpr double kStartSeconds = 600;

// Ranks give up one after the other: the first speaks, and ends all.
double staggered(double seconds, int rank) {
  constexpr double kSecondsApart = 3;  // mpirun takes up to two to end a job
  return seconds > 0 ? seconds + kSecondsApart * rank : 0;
}

class MpiWorld final : public World {
 public:
  explicit MpiWorld(const Variables& variables) {
    const int launched_rank = rank_of(variables);
    const Deadline deadline(
        staggered(kStartSeconds, launched_rank),
        ExitCode::hang,
        fmt::format("rank {} on {}, start: MPI_Init has waited for {:.0f} s (a rank is stopped, is "
                    "another program, or its machine or network is down); see what the launcher "
                    "says, and start the job again",
                    launched_rank,
                    host_name(),
                    kStartSeconds));
    int provided = MPI_THREAD_SINGLE;
    MEMPHIS_MPI(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided));
    MEMPHIS_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    if (provided != MPI_THREAD_MULTIPLE) {
      throw PreflightError(
          fmt::format("MPI gives thread level {} and not MPI_THREAD_MULTIPLE (groups "
                      "are driven by threads of their own); use an MPI that is "
                      "built with threads",
                      provided));
    }
    MEMPHIS_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &place_.rank));
    MEMPHIS_MPI(MPI_Comm_size(MPI_COMM_WORLD, &place_.size));
    MPI_Comm machine = MPI_COMM_NULL;
    MEMPHIS_MPI(MPI_Comm_split_type(
        MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, place_.rank, MPI_INFO_NULL, &machine));
    MEMPHIS_MPI(MPI_Comm_rank(machine, &place_.local_rank));
    MEMPHIS_MPI(MPI_Comm_free(&machine));
    check_place(variables, place_, "MPI");
    activity_.emplace(place_.rank, place_.size);
    if (place_.size > 1) {
      watchdog_.emplace(place_.rank, place_.size, *activity_);
    }
  }

  int rank() const override { return place_.rank; }
  int size() const override { return place_.size; }
  int local_rank() const override { return place_.local_rank; }
  Activity& activity() override { return *activity_; }

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override {
    require(std::find(ranks.begin(), ranks.end(), place_.rank) != ranks.end(),
            "a rank creates groups that it is in");
    if (ranks.size() == 1) {
      return make_solo(device);
    }
    MPI_Group all = MPI_GROUP_NULL;
    MPI_Group members = MPI_GROUP_NULL;
    MPI_Comm comm = MPI_COMM_NULL;
    MEMPHIS_MPI(MPI_Comm_group(MPI_COMM_WORLD, &all));
    MEMPHIS_MPI(MPI_Group_incl(all, static_cast<int>(ranks.size()), ranks.data(), &members));
    // Members alone call this, so that groups of one axis need not be made one after the other.
    MEMPHIS_MPI(MPI_Comm_create_group(MPI_COMM_WORLD, members, 0, &comm));
    MEMPHIS_MPI(MPI_Group_free(&members));
    MEMPHIS_MPI(MPI_Group_free(&all));
    auto transport = std::make_unique<MpiTransport>(
        comm, axis, std::vector<int>(ranks.begin(), ranks.end()), *activity_);
    auto host = std::make_unique<HostCommunicator>(axis, std::move(transport), *activity_);
    if (device == Device::cpu) {
      return host;
    }
    return make_nccl_communicator(std::move(axis), *host, *activity_, num_channels);
  }

  void abort(ExitCode code, std::string_view reason) noexcept override {
    if (watchdog_) {
      try {
        // A config is what the user wrote, wherever a rank was when it was refused.
        const std::string where =
            code == ExitCode::config ? std::string() : activity_->describe() + ": ";
        watchdog_->end_job(code, where + std::string(reason));
      } catch (...) {
        // The job ends all the same.
      }
    }
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
  }

  // Finalizing waits for the others, who may wait for this rank elsewhere if it fails.
  void close() override {
    if (watchdog_) {
      watchdog_->close();
    }
    // Of a rank that is stopped from here on nobody would hear.
    const double limit = place_.size > 1 ? activity_->limits().lost_seconds : 0;
    const Deadline deadline(
        staggered(limit, place_.rank),
        ExitCode::hang,
        fmt::format(
            "{}: MPI_Finalize has waited for {:.0f} s (a rank is stopped, or its machine or "
            "network is down; all work is done); the job is ended",
            activity_->describe(),
            limit));
    MEMPHIS_MPI(MPI_Finalize());
  }

 private:
  Place place_;
  std::optional<Activity> activity_;
  std::optional<MpiWatchdog> watchdog_;
};

}  // namespace

std::unique_ptr<World> make_world() {
  set_nccl_defaults();
  const Variables variables = launch_variables();
  // A process that nobody launched does without: MPI_Init starts a daemon for it and takes a
  // second.
  if (launched_by_mpi(variables)) {
    return std::make_unique<MpiWorld>(variables);
  }
  return make_solo_world();
}

}  // namespace memphis
