// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

namespace memphis {

// How far something long is, on standard error: on a terminal one live line, redrawn a few times a
// second, with what the log says above it; elsewhere a plain line of the log now and then, the first
// one after a few seconds, so that short work says nothing. Says nothing where log_warnings_alone()
// was called.
//
//   Progress progress("export", num_tensors, "tensors");
//   ... progress.update(done, "layers.3.experts");
//
// One that is made within the life of another is shown in its place until it ends. Any thread may
// call update(); it costs a lock and a look at the clock.
class Progress {
 public:
  // `total` 0: not known. `begun`: done before, which the time left does not count.
  Progress(std::string what, std::int64_t total, std::string unit, std::int64_t begun = 0);
  ~Progress();  // takes the live line away
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of `total` so far, and what is worth saying of it.
  void update(std::int64_t done, std::string_view note = {});

  // Whether there is a live line. Who logs lines of its own elsewhere calls this.
  static bool is_live();

  // Who has plain lines of its own wants none of these.
  void only_live() { only_live_ = true; }

 private:
  friend class LiveLine;
  using Clock = std::chrono::steady_clock;

  std::string line(std::size_t columns) const;

  std::string what_;
  std::int64_t total_;
  std::string unit_;
  std::int64_t begun_;
  std::int64_t done_;
  std::string note_;
  bool only_live_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point shown_;
};

// What Progress shows: "export [######....] 12/40 tensors  5s left  layers.3", cut to `columns`; 0:
// without a bar and not cut, for a log.
struct ProgressState {
  std::string_view what = {};
  std::int64_t total = 0;
  std::string_view unit = {};
  std::int64_t begun = 0;
  std::int64_t done = 0;
  std::string_view note = {};
  double seconds = 0;  // since it began
};
std::string progress_text(const ProgressState& state, std::size_t columns);

// "42s", "3m05s", "2h07m", "4d03h".
std::string short_duration(double seconds);

// Keeps the live line away while it lives, so that what is written meanwhile stands above it.
class AboveLiveLine {
 public:
  AboveLiveLine();
  ~AboveLiveLine();
  AboveLiveLine(const AboveLiveLine&) = delete;
  AboveLiveLine& operator=(const AboveLiveLine&) = delete;
};

}  // namespace memphis
