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

#include "csrc/comm/communication_log.h"
#include "csrc/comm/covered_time.h"
#include "csrc/comm/stream_spans.h"
#include "csrc/core/device.h"
#include "csrc/core/profiler_range.h"
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
//
// Work on the GPU runs behind the rank's own thread: place() says what that thread has come to, and
// while it waits for the GPU, in which collective the GPU stands.
class Activity {
 public:
  using Clock = std::chrono::steady_clock;

  // Where a rank is. Of fixed size: it travels between ranks as bytes.
  struct Place {
    std::int64_t step = 0;    // 0: before the first
    std::int32_t stage = -1;  // of a pipeline
    std::int32_t micro_batch = -1;
    std::int32_t layer = -1;
    std::int32_t waits_for = -1;  // the first of `missing`
    std::uint8_t inside = 0;      // 1: the collective is under way, 0: it was the last
    std::array<char, 32> phase = {};
    std::array<char, 32> collective = {};
    std::array<char, 24> axis = {};
    std::array<char, 64> missing = {};  // ranks of the job whose part has not arrived, if known

    // "step 21, stage 1, micro-batch 2, backward of layer 3, in moe.dispatch of expert_ranks"
    std::string describe() const;
  };

  explicit Activity(int rank = 0, int size = 1);

  void set_limits(const HangLimits& limits);
  HangLimits limits() const;

  // "rank 2 of 4 on gpu17, step 21, backward of layer 3"
  std::string describe() const;
  Place place() const;

  // By the rank's own thread: step `step`, counted from 1, begins; it goes on with `phase`, a
  // literal, of `layer` where that says more. Profilers show phases within micro-batches within steps.
  void begin_step(std::int64_t step);
  // What follows is for this micro-batch of the step, and in this stage of a pipeline, both counted
  // from 0; -1: for all of them.
  void begin_micro_batch(std::int64_t index, std::int64_t stage = -1);
  void enter(const char* phase, int layer = -1);

  // A call of a collective, as those who move it and who wait for it know it.
  struct Call {
    std::string_view axis;  // of its group, which outlives the call
    std::string_view name;
    // Identifies the group, whose axis and name others may have too. Never followed.
    const void* group = nullptr;
    // Rank of the job at the other end where the group has two: while a rank stands in the call,
    // that one's part has not arrived, and there is nothing to find out. -1: there are more.
    int peer = -1;
    std::int64_t logged = CommunicationLog::kNotKept;  // its number in the log
  };

  // While one lives the rank's own thread stands in a collective and does nothing else.
  class Waiting {
   public:
    Waiting(Activity& activity, const Call& call);
    ~Waiting();
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    Activity& activity_;
    Call call_;
    Clock::time_point begin_ = Clock::now();
  };

  // While one lives a communicator moves data, on whatever thread. `track` outlives the
  // trace.
  class Transfer {
   public:
    Transfer(Activity& activity, const char* track, const Call& call);
    ~Transfer();
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;

   private:
    Activity& activity_;
    const char* track_;
    Call call_;
    Clock::time_point begin_ = Clock::now();
  };

  // By the rank's own thread, or whoever waits for the GPU in its name: the GPU stands in a
  // collective, of whose progress nothing is seen from here; it does not, or nobody waits.
  void stand_on_gpu(std::string_view axis, std::string_view name);
  void stand_no_more();

  // This collective is on its way to the GPU.
  void note_enqueued(std::string_view axis, std::string_view name);

  // By transports: a part has arrived or is sent; these have not arrived for a while, in a call of
  // `group`. A rank has receives under way in several groups at one time: what is missing of those
  // in which it does not stand says nothing of what it waits for.
  void progress() { last_progress_.store(Clock::now().time_since_epoch().count()); }
  void set_missing(const void* group, std::span<const int> ranks);

  // How long the rank's own thread has stood in a collective, with nothing arriving or leaving on
  // any communicator; zero where it does something else. Whoever waits asks every second or more
  // often: of a longer time between two of these calls, in which the process was stopped, as a
  // scheduler does with a job that makes way, two seconds count.
  double idle_seconds() const;
  // The same where it stands in a call of `group`; zero in another's. What was started long before
  // it is waited for, as a receive of a pipeline, hangs from the time when nothing else is left to
  // do.
  double idle_seconds_in(const void* group) const;
  // How long it has waited for the GPU, which stands in one collective.
  double gpu_seconds() const;

  // Since the last call: for how long anything moved, however much of it at a time, and for how
  // long the rank's own thread, or the GPU's stream of its work, stood and waited. Neither is more
  // than the time since then. Nothing where collectives ran on the GPU untimed.
  struct Communication {
    double seconds = 0;
    double exposed_seconds = 0;
  };
  std::optional<Communication> take_communication();

  // From now on the GPU is timed: phases on `stream`, the rank's own, and what communicators put on
  // theirs; until time_gpu_no_more(), before the stream goes. By the rank's own thread, as what uses
  // these.
  void time_gpu(Stream stream);
  void time_gpu_no_more();
  StreamSpans* gpu_spans() { return gpu_spans_ ? &*gpu_spans_ : nullptr; }

  // Between these two every call of a collective is kept, with its times: what it takes is not
  // measured otherwise. Once for an Activity; of more than `max_records` the latest are left out.
  void start_log(std::size_t max_records);
  const CommunicationLog& finish_log();
  // By communicators, of a call that this rank's own thread makes now. `role`, axis, name, peer and
  // bytes are the caller's, the rest is known here. kNotKept where nothing is kept.
  std::int64_t log_call(const Call& call, CommunicationRecord::Role role, std::size_t bytes);

  // From now on spans are kept; call before communicators have work.
  void start_trace();
  // What was kept, with what the GPU has passed by now. Once nothing is added any more.
  const Trace* finish_trace();

 private:
  enum class Stands : std::uint8_t { nowhere, on_host, on_gpu };

  void stand(Stands where, const Call& call);
  void name_missing(std::span<const int> ranks);
  void set_collective(std::string_view axis, std::string_view name);
  void end_phase(Clock::time_point now);
  void take_gpu_spans();
  double standing_seconds(Stands where) const;

  int rank_;
  int size_;
  mutable std::mutex mutex_;
  HangLimits limits_;
  Place place_;
  const char* phase_ = "start";
  Clock::time_point phase_begin_ = Clock::now();
  std::atomic<Stands> stands_ = Stands::nowhere;
  // Later by what the process was kept from running meanwhile: who stands is looked at all the time.
  mutable std::atomic<Clock::rep> last_progress_{Clock::now().time_since_epoch().count()};
  mutable Clock::rep last_look_ = last_progress_.load();  // under mutex_
  CoveredTime communication_;
  CoveredTime exposed_;
  const void* stands_in_ = nullptr;  // Call::group
  std::optional<CommunicationLog> log_;
  std::atomic<bool> logs_ = false;
  std::optional<Trace> trace_;
  Stream gpu_stream_;
  std::optional<StreamSpans> gpu_spans_;
  std::optional<std::size_t> gpu_phase_;  // the span of phase_
  int phase_micro_batch_ = -1;
  ProfilerRanges ranges_;
  std::atomic<bool> ran_untimed_ = false;
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
