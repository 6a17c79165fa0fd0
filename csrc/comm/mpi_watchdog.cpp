// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/mpi_watchdog.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <system_error>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/comm/mpi_check.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

constexpr std::chrono::milliseconds kTick{20};
constexpr double kBeatSeconds = 0.1;
// A rank that is itself kept from running for long must not take that for the other's silence.
constexpr double kMaxTickSeconds = 0.5;
// What news takes from rank to rank, at most: the ring is idle only if all of it was at one time.
constexpr double kHopSeconds = 0.1;
// From when on a rank counts as one that stands in a collective.
constexpr double kStandingSeconds = 0.5;
// How long a rank that failed gives the first rank to say so and to end the job, which takes mpirun
// seconds where all cores are taken; after it the rank says so itself. It is waited for only where
// the first rank lives and does not answer.
constexpr std::chrono::seconds kGrace{20};

constexpr int kBeatTag = 0;
constexpr int kReportTag = 1;

// Processes of one machine may be in containers, with numbers of their own.
std::string machine_name() {
  std::error_code error;
  const auto space = std::filesystem::read_symlink("/proc/self/ns/pid", error);
  return host_name() + " " + (error ? std::to_string(::getpid()) : space.string());
}

bool process_exists(std::int32_t process) {
  return ::kill(process, 0) == 0 || errno != ESRCH;
}

}  // namespace

MpiWatchdog::MpiWatchdog(int rank, int size, const Activity& activity)
    : rank_(rank), size_(size), activity_(activity) {
  MEMPHIS_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm_));
  MEMPHIS_MPI(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
  copy_text(sent_.host, host_name());
  copy_text(sent_.machine, machine_name());
  sent_.process = ::getpid();
  thread_ = std::thread([this] { watch(); });
}

MpiWatchdog::~MpiWatchdog() {
  {
    const std::lock_guard lock(mutex_);
    giving_up_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
}

void MpiWatchdog::close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
  MEMPHIS_MPI(MPI_Comm_free(&comm_));
}

void MpiWatchdog::watch() {
  try {
    auto last_tick = Activity::Clock::now();
    std::unique_lock lock(mutex_);
    while (!giving_up_ && !(closing_ && closed())) {
      const bool closing = closing_;
      lock.unlock();
      const auto now = Activity::Clock::now();
      const std::chrono::duration<double> tick = now - last_tick;
      last_tick = now;
      awake_seconds_ = tick.count() > kMaxTickSeconds ? 0 : awake_seconds_ + tick.count();
      look_at_sending();
      receive_beat();
      look_for_deadlock();
      look_for_hang();
      if (closing != (sent_.closing != 0) && sending_ == MPI_REQUEST_NULL) {
        sent_.closing = 1;
        last_sent_ = {};  // now
      }
      send_beat();
      receive_report();
      look_for_loss(std::min(tick.count(), kMaxTickSeconds));
      lock.lock();
      changed_.wait_for(lock, kTick);
    }
    if (receiving_report_ != MPI_REQUEST_NULL) {
      MPI_Cancel(&receiving_report_);
      MPI_Request_free(&receiving_report_);
    }
  } catch (const std::exception& error) {
    end_job(ExitCode::rank_lost,
            fmt::format("{}: the watchdog fails: {}", activity_.describe(), error.what()));
  }
}

// The last beats of both neighbours are through.
bool MpiWatchdog::closed() const {
  return closing_sent_ && sending_ == MPI_REQUEST_NULL && heard_.closing != 0;
}

// Before anything is to be sent: where ticks are late, each sends a beat, and nothing new would ever
// get into one.
void MpiWatchdog::look_at_sending() {
  if (sending_ != MPI_REQUEST_NULL) {
    int done = 0;
    MEMPHIS_MPI(MPI_Test(&sending_, &done, MPI_STATUS_IGNORE));
  }
}

void MpiWatchdog::send_beat() {
  if (sending_ != MPI_REQUEST_NULL || closing_sent_) {
    return;  // behind the closing beat the next rank receives no more
  }
  const auto now = Activity::Clock::now();
  if (std::chrono::duration<double>(now - last_sent_).count() < kBeatSeconds) {
    return;
  }
  sent_.place = activity_.place();
  MEMPHIS_MPI(
      MPI_Isend(&sent_, sizeof(Beat), MPI_BYTE, (rank_ + 1) % size_, kBeatTag, comm_, &sending_));
  last_sent_ = now;
  closing_sent_ = sent_.closing != 0;
}

void MpiWatchdog::receive_beat() {
  while (heard_.closing == 0) {
    if (receiving_ == MPI_REQUEST_NULL) {
      MEMPHIS_MPI(MPI_Irecv(&arriving_,
                            sizeof(Beat),
                            MPI_BYTE,
                            (rank_ + size_ - 1) % size_,
                            kBeatTag,
                            comm_,
                            &receiving_));
    }
    int done = 0;
    MEMPHIS_MPI(MPI_Test(&receiving_, &done, MPI_STATUS_IGNORE));
    if (done == 0) {
      return;
    }
    heard_ = arriving_;
    heard_any_ = true;
    silence_seconds_ = 0;
    process_seen_ =
        process_seen_ || (std::strcmp(heard_.machine.data(), sent_.machine.data()) == 0 &&
                          process_exists(heard_.process));
  }
}

void MpiWatchdog::receive_report() {
  if (rank_ != 0) {
    return;
  }
  if (receiving_report_ == MPI_REQUEST_NULL) {
    MEMPHIS_MPI(MPI_Irecv(
        &report_, sizeof(Report), MPI_BYTE, MPI_ANY_SOURCE, kReportTag, comm_, &receiving_report_));
  }
  int done = 0;
  MEMPHIS_MPI(MPI_Test(&receiving_report_, &done, MPI_STATUS_IGNORE));
  if (done != 0) {
    announce(static_cast<ExitCode>(report_.code), report_.cause.data());
  }
}

void MpiWatchdog::look_for_loss(double tick_seconds) {
  silence_seconds_ += tick_seconds;
  const bool gone = process_seen_ && !process_exists(heard_.process);
  const double limit = activity_.limits().lost_seconds;
  const bool silent = limit > 0 && silence_seconds_ > limit;
  if (heard_.closing != 0 || !(gone || silent)) {
    return;
  }
  const int lost = (rank_ + size_ - 1) % size_;
  const std::string who = heard_any_
                              ? fmt::format("rank {} of {} on {}", lost, size_, heard_.host.data())
                              : fmt::format("rank {} of {}", lost, size_);
  const std::string last = heard_any_ ? "last heard of in " + heard_.place.describe()
                                      : std::string("not heard of before");
  const std::string what =
      gone ? fmt::format("its process {} is gone (killed, or out of memory)", heard_.process)
           : fmt::format("silent for {:.0f} s (stopped, or its machine or network is down)",
                         silence_seconds_);
  const Activity::Place own = activity_.place();
  const bool waits = own.inside != 0 && own.missing[0] != '\0';
  first_is_lost_ = lost == 0;
  end_job(gone ? ExitCode::rank_lost : ExitCode::hang,
          fmt::format("{}: {}; {}; not arrived: rank {}; noticed by rank {} in {}{}",
                      who,
                      what,
                      last,
                      lost,
                      rank_,
                      own.describe(),
                      waits ? fmt::format(", waiting for {}", own.missing.data()) : ""));
}

double MpiWatchdog::idle_seconds() const {
  return std::min(activity_.idle_seconds(), awake_seconds_);
}

void MpiWatchdog::look_for_deadlock() {
  const double limit = activity_.limits().lost_seconds;
  const double least = std::max(limit, kHopSeconds * size_);
  std::int64_t num_idle = 0;
  auto difference = sent_.difference;
  std::int32_t explains = sent_.explains;
  if (limit > 0 && idle_seconds() > least) {
    num_idle = std::min<std::int64_t>(heard_.num_idle + 1, size_);
    const Activity::Place own = activity_.place();
    const int before = (rank_ + size_ - 1) % size_;
    const bool differs = heard_.place.collective != own.collective ||
                         heard_.place.axis != own.axis || heard_.place.step != own.step;
    const bool waits = differs && (own.waits_for == before || heard_.place.waits_for == rank_);
    if (heard_.num_idle > 0 && heard_.explains != 0) {
      difference = heard_.difference;
      explains = 1;
    } else if (heard_.num_idle > 0 && (waits || (differs && heard_.difference[0] == '\0'))) {
      copy_text(
          difference,
          fmt::format(
              "rank {}: {}; rank {}: {}", before, heard_.place.describe(), rank_, own.describe()));
      explains = waits ? 1 : 0;
    } else if (heard_.num_idle > 0) {
      difference = heard_.difference;
    }
    if (num_idle == size_) {
      end_job(ExitCode::hang,
              fmt::format("{}: all {} ranks wait for each other since {:.0f} s, this one for {} "
                          "(they do not make the same calls: {}); report it with the config",
                          activity_.describe(),
                          size_,
                          activity_.idle_seconds(),
                          own.missing[0] != '\0' ? own.missing.data() : "none",
                          difference[0] != '\0' ? difference.data() : "all stand in the same one"));
    }
  }
  if (sending_ != MPI_REQUEST_NULL) {
    return;  // what it sends is MPI's
  }
  sent_.difference = difference;
  sent_.explains = explains;
  if (num_idle != sent_.num_idle) {
    sent_.num_idle = num_idle;
    last_sent_ = {};  // now
  }
}

void MpiWatchdog::look_for_hang() {
  const double seconds = std::min(activity_.gpu_seconds(), awake_seconds_);
  const bool stands = std::max(seconds, idle_seconds()) > kStandingSeconds;
  const std::int64_t num_standing =
      stands ? std::min<std::int64_t>(heard_.num_standing + 1, size_) : 0;
  const Activity::Place& before_them = heard_.num_standing > 0 ? heard_.before_them : heard_.place;
  if (sending_ == MPI_REQUEST_NULL) {
    if (num_standing != sent_.num_standing) {
      last_sent_ = {};  // now
    }
    sent_.num_standing = num_standing;
    sent_.before_them = before_them;
  }
  const double limit = std::max(activity_.limits().hang_seconds, kStandingSeconds);
  if (activity_.limits().hang_seconds == 0 || seconds < limit) {
    return;
  }
  const std::string why =
      num_standing == size_
          ? std::string(
                "all ranks stand in collectives (they do not make the same calls, or their "
                "network is down); see where with NCCL_DEBUG=INFO")
          : fmt::format(
                "not arrived: rank {}, the nearest before it that stands in none, is in {} "
                "(alive, or it would have been missed); look into what it does, or raise "
                "run.hang_seconds if a step takes so long",
                (rank_ + size_ - num_standing) % size_,
                before_them.describe());
  end_job(ExitCode::hang,
          fmt::format(
              "{}: the GPU has stood there for {:.0f} s; {}", activity_.describe(), seconds, why));
}

void MpiWatchdog::announce(ExitCode code, std::string_view cause) noexcept {
  if (announced_.exchange(true)) {
    return;
  }
  try {
    log_error("memphis: {}", cause);
  } catch (...) {
    // The job ends all the same.
  }
  MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
}

void MpiWatchdog::end_job(ExitCode code, std::string_view cause) noexcept {
  if (rank_ != 0 && !first_is_lost_) {
    Report report;
    report.code = static_cast<std::int32_t>(code);
    copy_text(report.cause, cause);
    MPI_Request request = MPI_REQUEST_NULL;
    if (MPI_Isend(&report, sizeof(Report), MPI_BYTE, 0, kReportTag, comm_, &request) ==
        MPI_SUCCESS) {
      for (const auto begin = Activity::Clock::now(); Activity::Clock::now() - begin < kGrace;) {
        int done = 0;
        if (request != MPI_REQUEST_NULL) {
          MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        }
        std::this_thread::sleep_for(kTick);
      }
    }
  }
  announce(code, cause);
  std::this_thread::sleep_for(kGrace);  // another thread of this rank was first
}

}  // namespace memphis
