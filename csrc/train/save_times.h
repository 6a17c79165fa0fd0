// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

// When a run saves by the clock. Of the first rank, which decides for all: clocks of ranks differ.
namespace memphis {

// Of checkpoint.every: auto. A first save comes after the first step, which measures what one costs
// and shows that saving works; from then on Young's interval (csrc/plan/effective_time.h) lies between
// the begin of one save and the next, and no less than one takes to write.
//
// A save costs the time that training stands still for, and 3 % of the time in which it is written
// while training goes on: so much slower steps may be meanwhile.
class SaveInterval {
 public:
  explicit SaveInterval(double seconds_between_failures)
      : seconds_between_failures_(seconds_between_failures) {}

  // Seconds of any clock that does not go backwards, as everywhere here.
  void begun(double now) { begun_at_ = now; }
  // The last one that was begun is there, after `seconds`, of which training stood for `stall_seconds`.
  void saved(double stall_seconds, double seconds);
  // Or it has failed: nothing is known until one is there, and the next step's is tried.
  void failed();
  bool due(double now) const {
    return !begun_at_ || (seconds_ > 0 && now - *begun_at_ >= seconds_);
  }

  // Between saves; 0 before the first.
  double seconds() const { return seconds_; }
  double seconds_between_failures() const { return seconds_between_failures_; }

 private:
  double seconds_between_failures_;
  double cost_seconds_ = 0;  // of a save, as of late
  double seconds_ = 0;
  std::optional<double> begun_at_;
};

// What a run must have done by a time: `why` is what ends it then.
struct TimeEnd {
  double at = 0;
  std::string why;
};

// The earlier of the ends that the config and the scheduler say, or none. `limit` is run.time_limit,
// counted from `started`; `job_end` is SLURM_JOB_END_TIME, empty where it is not set, in seconds since
// 1970 as `unix_now` is, which is `now` of the clock of the others. ConfigError where it is no time.
std::optional<TimeEnd> end_of_time(
    std::int64_t limit, double started, std::string_view job_end, double unix_now, double now);

// Stops a run so long before its end that the step under way and a save are done by then.
class TimeLimit {
 public:
  // `save_seconds` is a guess of what a save takes, until one is measured.
  TimeLimit(TimeEnd end, double now, double save_seconds)
      : end_(std::move(end)), began_(now), save_seconds_(save_seconds) {}

  void stepped(double seconds);
  void saved(double seconds);

  // Whether what is left is less than is needed for the longest step there was, twice the longest
  // save, as one may be under way, and the end of the process. Of a
  // run's whole time, that is at most half.
  bool reached(double now) const;
  double needed_seconds() const;
  const std::string& why() const { return end_.why; }

 private:
  TimeEnd end_;
  double began_;
  double save_seconds_;
  bool measured_ = false;
  double step_seconds_ = 0;
};

// For how long this process has run; 0 where the system does not say.
double process_seconds();

}  // namespace memphis
