// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/shared_memory.h"

#include <algorithm>

#include "kernels/device/simt/symbols.h"

namespace memphis::kernels::simt {
namespace {

constexpr std::size_t kAlignment = 1024;  // TMA's widest swizzle wants this much
constexpr int kWarpSize = 32;

std::uint32_t image_offset(const void* pc) {
  return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(pc) -
                                    Symbols::instance().image_begin());
}

}  // namespace

SharedMemory::SharedMemory()
    : storage_(new std::byte[kDynamicExtent + kAlignment]),
      static_begin_(Symbols::local_storage()),
      static_bytes_(Symbols::instance().local_storage_bytes()),
      is_variable_(static_bytes_),
      histories_(kMaxBytes + static_bytes_ + kWordBytes),
      word_histories_((kMaxBytes + static_bytes_) / kWordBytes + 1) {
  const auto begin = reinterpret_cast<std::uintptr_t>(storage_.get()) + kGap;
  const std::uintptr_t aligned = (begin + kAlignment - 1) / kAlignment * kAlignment;
  dynamic_ = reinterpret_cast<std::byte*>(aligned);
  dynamic_begin_ = aligned - kGap;
  for (const SharedVariable& variable : Symbols::instance().shared_variables()) {
    std::fill_n(
        is_variable_.begin() + static_cast<std::ptrdiff_t>(variable.offset), variable.bytes, true);
  }
  const std::size_t num_bytes = kMaxBytes + static_bytes_;
  written_in_.resize(num_bytes);
  writers_.resize(num_bytes);
  guards_.resize(num_bytes);
  split_in_.resize(num_bytes / kWordBytes + 1);
}

void SharedMemory::begin_block(std::size_t dynamic_bytes, int num_threads, bool check_races) {
  ++block_;
  dynamic_bytes_ = dynamic_bytes;
  check_races_ = check_races;
  clocks_.begin_block(num_threads);
  fences_.assign(static_cast<std::size_t>(num_threads), 0U);
  // A block leaves its mbarriers, and one that ended in a fault what was under way.
  std::fill_n(guards_.begin(), dynamic_bytes, Guard{});
  std::fill(guards_.begin() + kMaxBytes, guards_.end(), Guard{});
}

std::size_t SharedMemory::index_of(std::uintptr_t address) const {
  const std::uintptr_t dynamic = address - dynamic_begin_ - kGap;
  if (dynamic < dynamic_bytes_) {
    return dynamic;
  }
  const std::uintptr_t local = address - static_begin_;
  return local < static_bytes_ && is_variable_[local] ? kMaxBytes + local : kNowhere;
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

bool SharedMemory::access(std::uintptr_t address,
                          std::size_t bytes,
                          Access access,
                          int thread,
                          const void* pc,
                          Fault& fault) {
  fault = {.what = nullptr,
           .advice = nullptr,
           .thread = thread,
           .pc = pc,
           .address = address,
           .bytes = bytes,
           .access = access};
  const auto stop_at = [&](std::size_t i, const char* what, const char* advice) {
    fault.address = address + i;
    fault.what = what;
    fault.advice = advice;
    return false;
  };
  const std::size_t first = index_of(address);
  for (std::size_t i = 0; i < bytes; ++i) {
    const std::size_t index = first + i;
    if (index_of(address + i) != index || first == kNowhere) {
      return stop_at(i,
                     "outside of the block's shared memory",
                     "check the index, and the size given to launch");
    }
    if (const char* const what = forbids(guards_[index], access); what != nullptr) {
      return stop_at(i,
                     what,
                     guards_[index].is_mbarrier
                         ? "touch it by mbarrier instructions alone, or invalidate it first"
                         : "wait for it first, and let others pass a barrier");
    }
    if ((is_read(access) || access == Access::atomic) && written_in_[index] != block_) {
      return stop_at(i, "of shared memory that nobody has written", "write it first");
    }
    if ((access == Access::async_read || access == Access::async_write) &&
        !is_fenced(index, fault)) {
      fault.address = address + i;
      return false;
    }
  }
  if (check_races_) {
    const Touch touch = {.moment = clocks_.now(thread), .access = access, .pc = image_offset(pc)};
    if (!note(first, bytes, touch, fault)) {
      return false;
    }
  }
  if (!is_read(access)) {
    const std::uint32_t last = access == Access::async_write ? kAsyncProxy : writer(thread);
    for (std::size_t index = first; index < first + bytes; ++index) {
      written_in_[index] = block_;
      writers_[index] = last;
    }
  }
  return true;
}

bool SharedMemory::note(std::size_t first, std::size_t bytes, const Touch& touch, Fault& fault) {
  const std::uintptr_t address = fault.address;
  const std::size_t end = first + bytes;
  for (std::size_t index = first; index < end;) {
    const std::size_t word = index / kWordBytes;
    const bool whole = index % kWordBytes == 0 && index + kWordBytes <= end;
    if (!whole && split_in_[word] != block_) {
      std::fill_n(&histories_[word * kWordBytes], kWordBytes, word_histories_[word]);
      split_in_[word] = block_;
    }
    const bool split = split_in_[word] == block_;
    if (!note(split ? histories_[index] : word_histories_[word], touch, fault)) {
      fault.address = address + (index - first);
      return false;
    }
    index += split ? 1 : kWordBytes;
  }
  return true;
}

const SharedMemory::History& SharedMemory::history_of(std::size_t index) const {
  const std::size_t word = index / kWordBytes;
  return split_in_[word] == block_ ? histories_[index] : word_histories_[word];
}

// Whether the last write to a byte, if it was a thread's, lies before a fence of that thread.
bool SharedMemory::is_fenced(std::size_t index, Fault& fault) const {
  const std::uint32_t last = writers_[index];
  if (written_in_[index] != block_ || last == kAsyncProxy) {
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
    const Touch& write = history_of(index).write;
    fault.has_other = true;
    fault.other_thread = thread;
    fault.other_access = write.access;
    fault.other_pc = reinterpret_cast<const void*>(Symbols::instance().image_begin() + write.pc);
  }
  return false;
}

bool SharedMemory::note(History& history, const Touch& touch, Fault& fault) const {
  const int thread = touch.moment.thread;
  const auto races = [&](const Touch& earlier) {
    const bool both_atomic = earlier.access == Access::atomic && touch.access == Access::atomic;
    if (both_atomic || clocks_.before(earlier.moment, thread)) {
      return false;
    }
    fault.what = "of shared memory, in a race";
    fault.advice = "put a barrier between the two";
    fault.has_other = true;
    fault.other_thread = earlier.moment.thread;
    fault.other_access = earlier.access;
    fault.other_pc = reinterpret_cast<const void*>(Symbols::instance().image_begin() + earlier.pc);
    return true;
  };
  if (races(history.write)) {
    return false;
  }
  if (is_read(touch.access)) {
    keep(history.reads, touch, clocks_);
    return true;
  }
  for (Touch& read : history.reads) {
    if (races(read)) {
      return false;
    }
    read = {};  // whoever races with it races with this write too
  }
  history.write = touch;
  return true;
}

void SharedMemory::keep(Touch (&reads)[kMaxReads], const Touch& touch, const Clocks& clocks) {
  const int thread = touch.moment.thread;
  Touch* of_own_warp = nullptr;
  for (Touch& read : reads) {
    if (clocks.before(read.moment, thread)) {  // a write that races with it races with this
      read = touch;
      return;
    }
    if (read.moment.thread / kWarpSize == thread / kWarpSize) {
      of_own_warp = &read;
    }
  }
  // All places are taken by others. One reader a warp tells as much as several, but that the warp
  // itself needs two: one of them is not the writer.
  *(of_own_warp != nullptr ? of_own_warp : &reads[kMaxReads - 1]) = touch;
}

void SharedMemory::begin_copy(std::uintptr_t address, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    ++guards_[index_of(address + i)].copies;
  }
}

void SharedMemory::end_copy(std::uintptr_t address, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    --guards_[index_of(address + i)].copies;
  }
}

void SharedMemory::begin_reading(std::uintptr_t address, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    ++guards_[index_of(address + i)].readers;
  }
}

void SharedMemory::end_reading(std::uintptr_t address, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    --guards_[index_of(address + i)].readers;
  }
}

void SharedMemory::set_mbarrier(std::uintptr_t address, std::size_t bytes, bool is_mbarrier) {
  for (std::size_t i = 0; i < bytes; ++i) {
    guards_[index_of(address + i)].is_mbarrier = is_mbarrier;
  }
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
