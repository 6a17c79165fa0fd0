// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace memphis::kernels::simt {

// What the blocks of a launch that are in flight wait for from each other: flags in global memory.
// Knows when all of them wait, so that nobody is left to write, though other blocks may be to come:
// hardware need not begin those before one of these has ended.
class GridWaits {
 public:
  // Before the first of so many threads of the machine runs a block.
  void begin(int num_threads) { num_running_ = num_threads; }

  // How many writes to flags there were: read it before the flag, then wait beyond it.
  std::uint64_t num_writes();
  void note_write();
  // Returns true when there was a write beyond `num_writes`; false when there will be none.
  bool wait_beyond(std::uint64_t num_writes);

  // A thread of the machine runs no more blocks.
  void leave();
  // Nobody waits any longer, as another block has ended in a fault.
  void abandon();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t num_writes_ = 0;
  int num_running_ = 0;
  int num_waiting_ = 0;  // since the last write
  bool over_ = false;
};

}  // namespace memphis::kernels::simt
