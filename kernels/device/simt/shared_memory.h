// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/simt/clocks.h"
#include "kernels/device/simt/fault.h"
#include "kernels/device/simt/sparse_array.h"

namespace memphis::kernels::simt {

inline std::uintptr_t address_of(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

// The shared memory of the block that a thread of the machine runs, static and dynamic, and what is
// known of each of its bytes: whether it was written in this block, what asynchronous work on it is
// under way, and who touched it last.
class SharedMemory {
 public:
  static constexpr std::size_t kMaxBytes = std::size_t{227} << 10;  // of a block on an H100
  // Where dynamic shared memory begins among the addresses of shared memory: the first KiB is the
  // system's, as on an H100. Static shared memory has no such address here.
  static constexpr std::uint32_t kWindowBegin = 1024;

  // For the calling thread of the machine.
  SharedMemory();

  void begin_block(std::size_t dynamic_bytes, int num_threads, bool check_races);

  std::byte* dynamic() { return dynamic_; }
  // Whether the address is in shared memory, or so near to it that it was meant to be.
  bool contains(std::uintptr_t address) const {
    return address - dynamic_begin_ < kDynamicExtent || address - static_begin_ < static_bytes_;
  }

  // Checks and notes an access of `thread`. False: `fault` says what is wrong with it.
  bool access(std::uintptr_t address,
              std::size_t bytes,
              Access access,
              int thread,
              const void* pc,
              Fault& fault);

  // Words between the issue and the end of an asynchronous copy: nobody may touch them. Requires
  // that access(…, Access::copy, …) held.
  void begin_copy(std::uintptr_t address, std::size_t bytes);
  void end_copy(std::uintptr_t address, std::size_t bytes);
  // The same for words that asynchronous work reads: nobody may write them. Requires that
  // access(…, Access::async_read, …) held.
  void begin_reading(std::uintptr_t address, std::size_t bytes);
  void end_reading(std::uintptr_t address, std::size_t bytes);
  // Words that only the instructions of an mbarrier may touch, from its init to its inval.
  void set_mbarrier(std::uintptr_t address, std::size_t bytes, bool is_mbarrier);
  // fence.proxy.async: what `thread` has written may be read by the async proxy, and what it has read
  // may be written. It is who wrote or read that must fence, before the barrier that others wait at;
  // the PTX memory model would also take a fence by the thread that issues the copy.
  void fence_proxy(int thread) { ++fences_[static_cast<std::size_t>(thread)]; }

  Clocks& clocks() { return clocks_; }

  // "scratch + 68", "dynamic shared memory + 12"
  std::string describe(std::uintptr_t address) const;

 private:
  static constexpr std::size_t kGap = 4096;  // before and after the dynamic part
  static constexpr std::size_t kDynamicExtent = kMaxBytes + 2 * kGap;
  static constexpr std::size_t kMaxReads = 3;

  static constexpr int kThreadBits = 11;  // 1024, and one from outside
  static constexpr int kAccessBits = 3;
  static constexpr int kTouchFenceBits = 32 - kThreadBits - kAccessBits;
  static constexpr std::uint32_t kThreadMask = (1U << kThreadBits) - 1;
  static constexpr std::uint32_t kTouchFenceMask = (1U << kTouchFenceBits) - 1;

  // A moment and what was done then, in 16 bytes.
  struct Touch {
    std::uint32_t interval = 0;
    std::uint32_t clock = 0;
    std::uint32_t pc = 0;  // from the beginning of the program's image
    std::uint32_t thread : kThreadBits = 0;
    std::uint32_t fences : kTouchFenceBits = 0;  // the last bits of how often it had fenced
    Access access : kAccessBits = Access::read;

    Moment moment() const {
      return {.interval = interval, .clock = clock, .thread = static_cast<std::uint16_t>(thread)};
    }
  };
  // The last write, and reads since the last barrier by threads that do not know of each other. Of
  // more readers than fit, those of different warps are kept. A line of the processor's cache: most
  // of what a kernel's access costs here is to fetch it.
  struct History {
    Touch write;
    Touch reads[kMaxReads];
  };
  static_assert(sizeof(History) == 64);

  // What is under way on a word. All zero: nothing.
  struct Guard {
    std::uint8_t copies = 0;
    bool is_mbarrier = false;
    std::uint16_t readers = 0;
  };
  static const char* forbids(const Guard& guard, Access access);

  // The last write: in which block, and by whom (see writer()).
  struct Written {
    std::uint32_t in = 0;
    std::uint32_t by = 0;
  };
  // What is known of some bytes that were touched in the same way.
  struct Known {
    Written& written;
    History& history;
  };

  // Who writes: the thread and the number of its proxy fences so far.
  std::uint32_t writer(int thread) const {
    return static_cast<std::uint32_t>(thread) << kFenceBits |
           (fences_[static_cast<std::size_t>(thread)] & kFenceMask);
  }
  static constexpr unsigned kFenceBits = 32 - kThreadBits;
  static constexpr std::uint32_t kFenceMask = (1U << kFenceBits) - 1;
  static constexpr std::uint32_t kAsyncProxy = 0xFFFFFFFFU;  // the last writer was no thread

  // The index of a byte; kNowhere for one that belongs to no variable.
  static constexpr std::size_t kNowhere = SIZE_MAX;
  std::size_t index_of(std::uintptr_t address) const;
  // Whether these bytes are all of the dynamic part, or all of variables.
  bool is_inside(std::size_t first, std::size_t bytes) const;
  // Four bytes that are always touched together share what is known of them. The first access to
  // some of them alone gives each of them its own, for the rest of the block.
  static constexpr std::size_t kWordBytes = 4;
  void split(std::size_t word);
  template <class Change>
  void change_guards(std::uintptr_t address, std::size_t bytes, const Change& change);
  // What forbids an access to one place, if something does: with a `fault` that lacks the address.
  bool refuses(const Known& known, const Touch& touch, Fault& fault) const;
  bool is_fenced(const Known& known, Fault& fault) const;
  bool are_reads_fenced(const History& history, Fault& fault) const;
  bool races(const Touch& earlier, const Touch& touch) const {
    return !clocks_.before(earlier.moment(), touch.thread) &&
           (earlier.access != Access::atomic || touch.access != Access::atomic);
  }
  bool report_race(const Touch& earlier, Fault& fault) const;
  void name_other(const Touch& earlier, Fault& fault) const;
  void note(History& history, const Touch& touch) const;
  void keep(Touch (&reads)[kMaxReads], const Touch& touch) const;

  std::unique_ptr<std::byte[]> storage_;
  std::byte* dynamic_;
  std::uintptr_t dynamic_begin_;  // of its extent, gap included
  std::size_t dynamic_bytes_ = 0;
  std::uintptr_t static_begin_;
  std::size_t static_bytes_;
  std::vector<std::uint8_t> is_variable_;  // by byte of the thread's local storage
  std::uintptr_t image_begin_;             // of the program

  std::uint32_t block_ = 0;
  bool check_races_ = false;
  std::uint32_t first_interval_ = 0;   // of the block
  std::vector<std::uint32_t> fences_;  // proxy fences, by thread
  std::vector<Guard> guards_;          // by word, as are all sizes of asynchronous work
  // By word, and by byte of those that were split.
  std::vector<Written> word_written_;
  SparseArray<History> word_histories_;
  std::vector<Written> byte_written_;
  SparseArray<History> byte_histories_;
  std::vector<std::uint32_t> split_in_;  // the block in which a word was last split
  Clocks clocks_;
};

}  // namespace memphis::kernels::simt
