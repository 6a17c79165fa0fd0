// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/shared_memory.h"

#include <algorithm>

#include "kernels/device/simt/symbols.h"

namespace memphis::kernels::simt {
namespace {

constexpr std::size_t kAlignment = 1024;  // TMA's widest swizzle wants this much
constexpr int kWarpSize = 32;

}  // namespace

SharedMemory::SharedMemory()
    : storage_(new std::byte[kDynamicExtent + kAlignment]),
      static_begin_(Symbols::local_storage()),
      static_bytes_(Symbols::instance().local_storage_bytes()),
      is_variable_(static_bytes_),
      image_begin_(Symbols::instance().image_begin()),
      word_histories_((kMaxBytes + static_bytes_) / kWordBytes + 1),
      byte_histories_(kMaxBytes + static_bytes_ + kWordBytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(storage_.get()) + kGap;
  const std::uintptr_t aligned = (begin + kAlignment - 1) / kAlignment * kAlignment;
  dynamic_ = reinterpret_cast<std::byte*>(aligned);
  dynamic_begin_ = aligned - kGap;
  for (const SharedVariable& variable : Symbols::instance().shared_variables()) {
    std::fill_n(
        is_variable_.begin() + static_cast<std::ptrdiff_t>(variable.offset), variable.bytes, 1);
  }
  const std::size_t num_words = (kMaxBytes + static_bytes_) / kWordBytes + 1;
  word_written_.resize(num_words);
  byte_written_.resize(num_words * kWordBytes);
  guards_.resize(num_words);
  split_in_.resize(num_words);
}

void SharedMemory::begin_block(std::size_t dynamic_bytes, int num_threads, bool check_races) {
  ++block_;
  dynamic_bytes_ = dynamic_bytes;
  check_races_ = check_races;
  clocks_.begin_block(num_threads);
  first_interval_ = clocks_.now(0).interval;
  fences_.assign(static_cast<std::size_t>(clocks_.outside()) + 1, 0U);
  // A block leaves its mbarriers, and one that ended in a fault what was under way.
  std::fill_n(guards_.begin(), (dynamic_bytes + kWordBytes - 1) / kWordBytes, Guard{});
  std::fill(guards_.begin() + kMaxBytes / kWordBytes, guards_.end(), Guard{});
}

std::size_t SharedMemory::index_of(std::uintptr_t address) const {
  const std::uintptr_t dynamic = address - dynamic_begin_ - kGap;
  if (dynamic < dynamic_bytes_) {
    return dynamic;
  }
  const std::uintptr_t local = address - static_begin_;
  return local < static_bytes_ && is_variable_[local] != 0 ? kMaxBytes + local : kNowhere;
}

bool SharedMemory::is_inside(std::size_t first, std::size_t bytes) const {
  if (first < dynamic_bytes_) {
    return bytes <= dynamic_bytes_ - first;
  }
  if (first == kNowhere || bytes > kMaxBytes + static_bytes_ - first) {
    return false;
  }
  const std::uint8_t* const of = &is_variable_[first - kMaxBytes];
  return std::find(of, of + bytes, std::uint8_t{0}) == of + bytes;
}

const char* SharedMemory::forbids(const Guard& guard, Access access) {
  if (guard.copies != 0) {
    return "of shared memory into which an asynchronous copy is under way";
  }
  if (guard.is_mbarrier) {
    return "of shared memory that holds an mbarrier";
  }
  if (guard.readers != 0 && !is_read(access)) {
    return "of shared memory that a wgmma or a bulk store under way reads";
  }
  return nullptr;
}

// What follows is asked of each word that a kernel touches: inline.
inline void SharedMemory::keep(Touch (&reads)[kMaxReads], const Touch& touch) const {
  Touch* of_own_warp = nullptr;
  for (Touch& read : reads) {
    // A write that races with it races with this.
    if (clocks_.before(read.moment(), touch.thread)) {
      read = touch;
      return;
    }
    if (read.thread / kWarpSize == touch.thread / kWarpSize) {
      of_own_warp = &read;
    }
  }
  // All places are taken by others. One reader a warp tells as much as several, but that the warp
  // itself needs two: one of them is not the writer.
  *(of_own_warp != nullptr ? of_own_warp : &reads[kMaxReads - 1]) = touch;
}

inline void SharedMemory::note(History& history, const Touch& touch) const {
  if (is_read(touch.access)) {
    keep(history.reads, touch);
    return;
  }
  // Whoever races with an earlier read races with this write too.
  std::fill(std::begin(history.reads), std::end(history.reads), Touch{});
  history.write = touch;
}

inline bool SharedMemory::refuses(const Known& known, const Touch& touch, Fault& fault) const {
  const bool reads = is_read(touch.access);
  if ((reads || touch.access == Access::atomic) && known.written.in != block_) {
    fault.what = "of shared memory that nobody has written";
    fault.advice = "write it first";
    return true;
  }
  if ((touch.access == Access::async_read || touch.access == Access::async_write) &&
      !is_fenced(known, fault)) {
    return true;
  }
  if (!check_races_) {
    return false;
  }
  if (races(known.history.write, touch)) {
    return report_race(known.history.write, fault);
  }
  if (!reads) {
    for (const Touch& read : known.history.reads) {
      if (races(read, touch)) {
        return report_race(read, fault);
      }
    }
  }
  return touch.access == Access::async_write && !are_reads_fenced(known.history, fault);
}

bool SharedMemory::access(std::uintptr_t address,
                          std::size_t bytes,
                          Access access,
                          int thread,
                          const void* pc,
                          Fault& fault) {
  const auto stop_at = [&](std::uintptr_t at) {
    fault.thread = thread;
    fault.pc = pc;
    fault.address = at;
    fault.bytes = bytes;
    fault.access = access;
    return false;
  };
  const std::size_t first = index_of(address);
  if (!is_inside(first, bytes)) {
    std::size_t i = 0;
    while (first != kNowhere && index_of(address + i) == first + i) {
      ++i;
    }
    fault.what = "outside of the block's shared memory";
    fault.advice = "check the index, and the size given to launch";
    return stop_at(address + i);
  }
  const Moment now = clocks_.now(thread);
  const Touch touch = {.interval = now.interval,
                       .clock = now.clock,
                       .pc = static_cast<std::uint32_t>(address_of(pc) - image_begin_),
                       .thread = now.thread & kThreadMask,
                       .fences = fences_[now.thread] & kTouchFenceMask,
                       .access = access};
  const std::uint32_t by = access == Access::async_write ? kAsyncProxy : writer(thread);
  const std::size_t end = first + bytes;
  for (std::size_t index = first; index < end;) {
    const std::size_t word = index / kWordBytes;
    if (const char* const what = forbids(guards_[word], access); what != nullptr) {
      fault.what = what;
      fault.advice = guards_[word].is_mbarrier
                         ? "touch it by mbarrier instructions alone, or invalidate it first"
                         : "wait for it first, and let others pass a barrier";
      return stop_at(address + (index - first));
    }
    const bool whole = index % kWordBytes == 0 && index + kWordBytes <= end;
    if (!whole && split_in_[word] != block_) {
      split(word);
    }
    const bool is_split = split_in_[word] == block_;
    const Known known = is_split ? Known{byte_written_[index], byte_histories_[index]}
                                 : Known{word_written_[word], word_histories_[word]};
    if (refuses(known, touch, fault)) {
      return stop_at(address + (index - first));
    }
    if (check_races_) {
      note(known.history, touch);
    }
    if (!is_read(access)) {
      known.written = {.in = block_, .by = by};
    }
    index += is_split ? 1 : kWordBytes;
  }
  return true;
}

void SharedMemory::split(std::size_t word) {
  std::fill_n(&byte_written_[word * kWordBytes], kWordBytes, word_written_[word]);
  std::fill_n(&byte_histories_[word * kWordBytes], kWordBytes, word_histories_[word]);
  split_in_[word] = block_;
}

// Whether the last write to a place, if it was a thread's, lies before a fence of that thread.
bool SharedMemory::is_fenced(const Known& known, Fault& fault) const {
  const std::uint32_t last = known.written.by;
  if (known.written.in != block_ || last == kAsyncProxy) {
    return true;
  }
  const auto thread = static_cast<int>(last >> kFenceBits);
  if (last != writer(thread)) {
    return true;
  }
  fault.what =
      "of shared memory by the async proxy, with no fence.proxy.async since a thread wrote";
  fault.advice = "let the writer call fence_proxy_async before the barrier";
  if (check_races_) {
    name_other(known.history.write, fault);
    fault.other_thread = thread;
  }
  return false;
}

// The same of reads since that write, of this block as a write is: those that are remembered.
bool SharedMemory::are_reads_fenced(const History& history, Fault& fault) const {
  for (const Touch& read : history.reads) {
    if (read.access == Access::read && read.interval >= first_interval_ &&
        read.fences == (fences_[read.thread] & kTouchFenceMask)) {
      fault.what =
          "of shared memory by the async proxy, with no fence.proxy.async since a thread read";
      fault.advice = "let the reader call fence_proxy_async before the barrier";
      name_other(read, fault);
      return false;
    }
  }
  return true;
}

bool SharedMemory::report_race(const Touch& earlier, Fault& fault) const {
  fault.what = "of shared memory, in a race";
  fault.advice = "put a barrier between the two";
  name_other(earlier, fault);
  return true;
}

void SharedMemory::name_other(const Touch& earlier, Fault& fault) const {
  fault.has_other = true;
  fault.other_thread = static_cast<int>(earlier.thread);
  fault.other_access = earlier.access;
  fault.other_pc = reinterpret_cast<const void*>(image_begin_ + earlier.pc);
}

template <class Change>
void SharedMemory::change_guards(std::uintptr_t address, std::size_t bytes, const Change& change) {
  const std::size_t first = index_of(address);
  for (std::size_t word = first / kWordBytes; word * kWordBytes < first + bytes; ++word) {
    change(guards_[word]);
  }
}

void SharedMemory::begin_copy(std::uintptr_t address, std::size_t bytes) {
  change_guards(address, bytes, [](Guard& guard) { ++guard.copies; });
}

void SharedMemory::end_copy(std::uintptr_t address, std::size_t bytes) {
  change_guards(address, bytes, [](Guard& guard) { --guard.copies; });
}

void SharedMemory::begin_reading(std::uintptr_t address, std::size_t bytes) {
  change_guards(address, bytes, [](Guard& guard) { ++guard.readers; });
}

void SharedMemory::end_reading(std::uintptr_t address, std::size_t bytes) {
  change_guards(address, bytes, [](Guard& guard) { --guard.readers; });
}

void SharedMemory::set_mbarrier(std::uintptr_t address, std::size_t bytes, bool is_mbarrier) {
  change_guards(address, bytes, [&](Guard& guard) { guard.is_mbarrier = is_mbarrier; });
}

std::string SharedMemory::describe(std::uintptr_t address) const {
  const std::uintptr_t dynamic = address - dynamic_begin_;
  if (dynamic < kDynamicExtent) {
    const auto offset = static_cast<std::int64_t>(dynamic) - static_cast<std::int64_t>(kGap);
    return "byte " + std::to_string(offset) + " of " + std::to_string(dynamic_bytes_) +
           " of dynamic shared memory";
  }
  const std::uintptr_t local = address - static_begin_;
  const SharedVariable* nearest = nullptr;
  for (const SharedVariable& variable : Symbols::instance().shared_variables()) {
    if (variable.offset <= local) {
      nearest = &variable;
    }
  }
  if (nearest == nullptr) {
    return "before the first shared variable";
  }
  return "byte " + std::to_string(local - nearest->offset) + " of " +
         std::to_string(nearest->bytes) + " of " + nearest->name;
}

}  // namespace memphis::kernels::simt
