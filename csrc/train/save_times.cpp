// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/save_times.h"

#include <algorithm>
#include <charconv>
#include <ctime>
#include <fstream>
#include <iterator>
#include <sstream>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/plan/effective_time.h"

namespace memphis {

void SaveInterval::saved(double stall_seconds, double seconds) {
  constexpr double kSlower = 0.03;
  const double cost = stall_seconds + kSlower * std::max(seconds - stall_seconds, 0.0);
  // Half of what is known is the past: a disk is slow at times, and one that has become so counts.
  constexpr double kPast = 0.5;
  cost_seconds_ = seconds_ > 0 ? kPast * cost_seconds_ + (1 - kPast) * cost : cost;
  seconds_ = std::max(effective_time({.seconds_between_failures = seconds_between_failures_,
                                      .save_seconds = cost_seconds_})
                          .interval_seconds,
                      seconds);
}

void SaveInterval::failed() {
  if (seconds_ == 0) {
    begun_at_.reset();
  }
}

std::optional<TimeEnd> end_of_time(
    std::int64_t limit, double started, std::string_view job_end, double unix_now, double now) {
  std::optional<TimeEnd> end;
  if (limit > 0) {
    end = TimeEnd{.at = started + static_cast<double>(limit), .why = "run.time_limit"};
  }
  if (limit == 0 || job_end.empty()) {
    return end;
  }
  std::int64_t seconds = 0;
  const auto [last, error] =
      std::from_chars(job_end.data(), job_end.data() + job_end.size(), seconds);
  if (error != std::errc{} || last != job_end.data() + job_end.size() || seconds < 0) {
    throw ConfigError(fmt::format(
        "SLURM_JOB_END_TIME is \"{}\" (Slurm sets it to seconds since 1970, and the run is to save "
        "before that); unset it, or use run.time_limit=none",
        job_end));
  }
  const double at = now + static_cast<double>(seconds) - unix_now;
  if (!end || at < end->at) {
    end = TimeEnd{.at = at, .why = "the end of the Slurm job (SLURM_JOB_END_TIME)"};
  }
  return end;
}

void TimeLimit::stepped(double seconds) {
  step_seconds_ = std::max(step_seconds_, seconds);
}

void TimeLimit::saved(double seconds) {
  save_seconds_ = measured_ ? std::max(save_seconds_, seconds) : seconds;
  measured_ = true;
}

double TimeLimit::needed_seconds() const {
  constexpr double kEndSeconds = 15;  // to close the job, and for what the launcher takes
  return std::min(step_seconds_ + 2 * save_seconds_ + kEndSeconds,
                  std::max(end_.at - began_, 0.0) / 2);
}

bool TimeLimit::reached(double now) const {
  return now + needed_seconds() >= end_.at;
}

double process_seconds() {
  // The process's name, in brackets, may hold anything; behind it come fields 3 and on, of which the
  // 22nd is when it started, in ticks since the machine did: proc(5).
  std::ifstream file("/proc/self/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::size_t name_end = text.rfind(')');
  timespec up{};
  if (name_end == std::string::npos || ::clock_gettime(CLOCK_BOOTTIME, &up) != 0) {
    return 0;
  }
  std::istringstream fields(text.substr(name_end + 1));
  constexpr int kFieldsBefore = 19;
  std::string field;
  for (int i = 0; i < kFieldsBefore; ++i) {
    fields >> field;
  }
  double ticks = 0;
  if (!(fields >> ticks)) {
    return 0;
  }
  constexpr double kNano = 1e-9;
  const double seconds = static_cast<double>(up.tv_sec) + static_cast<double>(up.tv_nsec) * kNano -
                         ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
  return std::max(seconds, 0.0);
}

}  // namespace memphis
