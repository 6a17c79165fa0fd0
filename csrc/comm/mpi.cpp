// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/comm/host_communicator.h"
#include "csrc/comm/launch_environment.h"
#include "csrc/comm/mpi_check.h"
#include "csrc/comm/mpi_transport.h"
#include "csrc/comm/mpi_watchdog.h"
#include "csrc/comm/nccl.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/world.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

// Ends this process where MPI does not let it go: a rank that is stopped once the watchdog has
// closed would keep all others for ever. All there is to do is done by then.
class EndGuard {
 public:
  EndGuard(double limit_seconds, int rank, std::string where) {
    if (limit_seconds > 0) {
      thread_ = std::thread([this, limit_seconds, rank, where = std::move(where)] {
        // One after the other: the first speaks, and ends all.
        constexpr double kSecondsApart = 0.5;
        const std::chrono::duration<double> patience(limit_seconds + kSecondsApart * rank);
        std::unique_lock lock(mutex_);
        if (!changed_.wait_for(lock, patience, [this] { return ended_; })) {
          spdlog::error(
              "memphis: {}: MPI_Finalize has waited for {:.0f} s (another rank is stopped, or its "
              "machine or network is down); all work is done, and the job is ended",
              where,
              limit_seconds);
          std::_Exit(static_cast<int>(ExitCode::hang));  // MPI may no longer be called
        }
      });
    }
  }
  ~EndGuard() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) {
      thread_.join();
    }
  }
  EndGuard(const EndGuard&) = delete;
  EndGuard& operator=(const EndGuard&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::thread thread_;
};

class MpiWorld final : public World {
 public:
  explicit MpiWorld(const Variables& variables) {
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
                                             Device device) override {
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
    return make_nccl_communicator(std::move(axis), *host);
  }

  void abort(ExitCode code, std::string_view reason) noexcept override {
    if (watchdog_) {
      try {
        watchdog_->end_job(code, fmt::format("{}: {}", activity_->describe(), reason));
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
    const EndGuard guard(
        place_.size > 1 ? activity_->limits().lost_seconds : 0, place_.rank, activity_->describe());
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
