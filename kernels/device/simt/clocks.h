// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace memphis::kernels::simt {

// When an access happened: the thread's own clock, in the interval between two barriers of the
// whole block.
struct Moment {
  std::uint32_t interval = 0;  // 0: never
  std::uint32_t clock = 0;
  std::uint16_t thread = 0;
};

// What one synchronising object (an mbarrier, a named barrier) carries from those who arrive to
// those who wait.
struct Carried {
  std::uint32_t interval = 0;
  std::vector<std::uint32_t> clocks;
};
// Both, of one block.
void merge(Carried& into, const Carried& more);

// Vector clocks of the threads of a block (Lamport 1978; Flanagan and Freund 2009, FastTrack): says
// which of two accesses came first by a barrier, and not just by luck. A barrier of the whole block
// orders everything, so it only begins a new interval; clocks are kept within one.
class Clocks {
 public:
  void begin_block(int num_threads);
  // A thread more than the block has: whoever reaches its memory from another block of the cluster.
  int outside() const { return static_cast<int>(num_threads_) - 1; }

  Moment now(int thread) const {
    return {.interval = interval_,
            .clock = own_[static_cast<std::size_t>(thread)],
            .thread = static_cast<std::uint16_t>(thread)};
  }
  // Whether `moment` comes before all that `thread` does from now on.
  bool before(const Moment& moment, int thread) const {
    if (moment.interval != interval_ || moment.thread == thread) {
      return true;
    }
    const auto t = static_cast<std::size_t>(thread);
    return fresh_[t] == interval_ && known_[t * num_threads_ + moment.thread] >= moment.clock;
  }

  void barrier() { begin_interval(); }
  // All of `threads` know of each other what they did.
  void join(std::span<const int> threads);
  // `thread` leaves what it knows, or learns what was left.
  void release(int thread, Carried& carried);
  void acquire(int thread, const Carried& carried);

 private:
  void begin_interval();
  std::uint32_t* known_by(int thread);

  std::size_t num_threads_ = 0;  // with the one from outside
  std::uint32_t interval_ = 0;   // never repeats while shadow memory remembers it
  std::vector<std::uint32_t> own_;
  std::vector<std::uint32_t> known_;  // [thread][thread]
  std::vector<std::uint32_t> fresh_;  // the interval that a thread's row of known_ is of
  std::vector<std::uint32_t> joined_;
};

}  // namespace memphis::kernels::simt
