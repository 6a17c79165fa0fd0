// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include <mpi.h>

#include "csrc/comm/communicator.h"

namespace memphis {

// Ends a job of processes on all ranks, with one line that says why, when one of them fails or
// stops.
//
// Each rank has a thread that sends a beat to the next rank and listens to the one before, in a
// ring, so what a rank does for it does not grow with the job. A rank that is not heard for
// HangLimits::lost_seconds is lost; so is one of this machine whose process is gone. A beat tells
// where its rank is, and for how many ranks in a row, up to its own, all have stood in collectives
// that nothing moves in: once that is the whole ring, the ranks wait for each other for ever. What
// moves between GPUs is not seen, so for them a rank ends the job after HangLimits::hang_seconds in
// one collective; it tells who keeps it, the nearest rank before it that stands in none.
class MpiWatchdog {
 public:
  // Collective over the job.
  MpiWatchdog(int rank, int size, const Activity& activity);
  ~MpiWatchdog();

  // Prints `cause`, unless another rank was first, and ends the job. May return shortly before the
  // process is ended.
  void end_job(ExitCode code, std::string_view cause) noexcept;

  // All ranks, when they have no more to do; until then each is watched.
  void close();

 private:
  struct Beat {
    Activity::Place place;
    std::int64_t num_idle = 0;  // ranks in a row
    // Ranks in a row that are in a collective, whether it moves or not; where the one before is.
    std::int64_t num_standing = 0;
    Activity::Place before_them;
    // Between two of them, in what they stand in: best of two of which one waits for the other.
    std::array<char, 192> difference = {};
    std::int32_t explains = 0;
    std::array<char, 64> host = {};
    std::array<char, 96> machine = {};  // where process numbers mean the same
    std::int32_t process = 0;
    std::int32_t closing = 0;
  };
  struct Report {
    std::int32_t code = 0;
    std::array<char, 2048> cause = {};
  };

  void watch();
  void look_at_sending();
  void send_beat();
  void receive_beat();
  void receive_report();
  void look_for_loss(double tick_seconds);
  void look_for_deadlock();
  void look_for_hang();
  void announce(ExitCode code, std::string_view cause) noexcept;
  bool closed() const;
  // For how long this rank has been in its collective and running: a job that was stopped as a whole
  // finds all its ranks in one when it goes on.
  double idle_seconds() const;

  int rank_;
  int size_;
  const Activity& activity_;
  MPI_Comm comm_ = MPI_COMM_NULL;

  Beat sent_;
  MPI_Request sending_ = MPI_REQUEST_NULL;
  Activity::Clock::time_point last_sent_ = {};
  bool closing_sent_ = false;  // the last beat is on its way, or through
  Beat arriving_;
  Beat heard_;  // the latest of the rank before
  bool heard_any_ = false;
  bool process_seen_ = false;
  double silence_seconds_ = 0;
  double awake_seconds_ = 0;  // since this rank was last kept from running for long
  MPI_Request receiving_ = MPI_REQUEST_NULL;
  Report report_;  // on the first rank, another's
  MPI_Request receiving_report_ = MPI_REQUEST_NULL;

  std::atomic<bool> announced_ = false;
  std::atomic<bool> first_is_lost_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closing_ = false;
  bool giving_up_ = false;
  std::thread thread_;
};

}  // namespace memphis
