// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "csrc/core/trace.h"

namespace memphis {

// After how long silence is a failure; 0: never, for a debugger, which stops ranks.
struct HangLimits {
  // Nothing is heard of a process, though others listen all the time: it is stopped, dead or cut
  // off. All ranks wait for each other, and nothing moves.
  double lost_seconds = 10;
  // Some ranks do not come to a collective, though they live.
  double hang_seconds = 600;
};

// What a rank is doing: for the watchdog and for messages that say where a job ended, for the
// measure of how much communication is hidden, and for the trace. The rank's own thread and those
// of its communicators write; anybody may read.
class Activity {
 public:
  using Clock = std::chrono::steady_clock;

  // Where a rank is. Of fixed size: it travels between ranks as bytes.
  struct Place {
    std::int64_t step = 0;  // 0: before the first
    std::int32_t layer = -1;
    std::int32_t waits_for = -1;  // the first of `missing`
    std::uint8_t inside = 0;      // 1: the collective is under way, 0: it was the last
    std::array<char, 32> phase = {};
    std::array<char, 32> collective = {};
    std::array<char, 24> axis = {};
    std::array<char, 64> missing = {};  // ranks of the job whose part has not arrived, if known

    // "step 21, backward of layer 3, in moe.dispatch of expert_ranks"
    std::string describe() const;
  };

  explicit Activity(int rank = 0, int size = 1);

  void set_limits(const HangLimits& limits);
  HangLimits limits() const;

  // "rank 2 of 4 on gpu17, step 21, backward of layer 3"
  std::string describe() const;
  Place place() const;

  // By the rank's own thread: step `step`, counted from 1, begins; it goes on with `phase`, a
  // literal, of `layer` where that says more.
  void begin_step(std::int64_t step);
  void enter(const char* phase, int layer = -1);

  // While one lives the rank's own thread stands in a collective and does nothing else.
  class Waiting {
   public:
    Waiting(Activity& activity, std::string_view axis, std::string_view name);
    ~Waiting();
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    Activity& activity_;
    std::string_view name_;
    Clock::time_point begin_ = Clock::now();
  };

  // While one lives a communicator moves data, on whatever thread. `track` is a literal.
  class Transfer {
   public:
    Transfer(Activity& activity, const char* track, std::string_view name);
    ~Transfer();
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;

   private:
    Activity& activity_;
    const char* track_;
    std::string_view name_;
    Clock::time_point begin_ = Clock::now();
  };

  // By transports: a part has arrived or is sent; these have not arrived for a while.
  void progress() { last_progress_.store(Clock::now().time_since_epoch().count()); }
  void set_missing(std::span<const int> ranks);

  // How long the rank's own thread has stood in a collective, with nothing arriving or leaving on
  // any communicator; zero where it does something else.
  double idle_seconds() const;

  // Since the last call: what all communication took, and for how much of it the rank's own thread
  // stood and waited.
  struct Communication {
    double seconds = 0;
    double exposed_seconds = 0;
  };
  Communication take_communication();

  // From now on spans are kept; call before communicators have work.
  void start_trace();
  const Trace* trace() const { return trace_ ? &*trace_ : nullptr; }

 private:
  void end_phase(Clock::time_point now);

  int rank_;
  int size_;
  mutable std::mutex mutex_;
  HangLimits limits_;
  Place place_;
  const char* phase_ = "start";
  Clock::time_point phase_begin_ = Clock::now();
  std::atomic<bool> waiting_ = false;
  std::atomic<Clock::rep> last_progress_{Clock::now().time_since_epoch().count()};
  std::atomic<Clock::rep> communication_ = 0;
  std::atomic<Clock::rep> exposed_ = 0;
  std::optional<Trace> trace_;
};

// As much of `text` as there is room for, and a zero: for what travels between ranks as bytes.
template <std::size_t N>
void copy_text(std::array<char, N>& target, std::string_view text) {
  const std::size_t length = std::min(text.size(), N - 1);
  std::memcpy(target.data(), text.data(), length);
  target[length] = '\0';
}

// This machine's name.
std::string host_name();

// "1, 2 and 5"; long lists end in how many more there are.
std::string list_ranks(std::span<const int> ranks);

}  // namespace memphis
