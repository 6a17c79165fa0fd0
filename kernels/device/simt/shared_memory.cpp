// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/shared_memory.h"

#include <algorithm>

#include <sys/mman.h>

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

void SharedMemory::Unmap::operator()(void* address) const {
  munmap(address, bytes);
}

SharedMemory::SharedMemory()
    : storage_(new std::byte[kDynamicExtent + kAlignment]),
      static_begin_(Symbols::local_storage()),
      static_bytes_(Symbols::instance().local_storage_bytes()),
      is_variable_(static_bytes_) {
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
  copies_.resize(num_bytes);
  // Pages of zeros, which become memory only where a kernel reaches.
  const std::size_t mapped = num_bytes * sizeof(History);
  void* const histories = mmap(
      nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (histories == MAP_FAILED) {
    throw PreflightError("cannot map the history of shared memory (the system refused " +
                         std::to_string(mapped) + " bytes); raise `ulimit -v`");
  }
  histories_ = {static_cast<History*>(histories), Unmap{mapped}};
}

void SharedMemory::begin_block(std::size_t dynamic_bytes, int num_threads, bool check_races) {
  ++block_;
  dynamic_bytes_ = dynamic_bytes;
  check_races_ = check_races;
  clocks_.begin_block(num_threads);
  // A block that ended in a fault leaves copies under way.
  std::fill_n(copies_.begin(), dynamic_bytes, std::uint8_t{0});
  std::fill(copies_.begin() + kMaxBytes, copies_.end(), std::uint8_t{0});
}

std::size_t SharedMemory::index_of(std::uintptr_t address) const {
  const std::uintptr_t dynamic = address - dynamic_begin_ - kGap;
  if (dynamic < dynamic_bytes_) {
    return dynamic;
  }
  const std::uintptr_t local = address - static_begin_;
  return local < static_bytes_ && is_variable_[local] ? kMaxBytes + local : kNowhere;
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
  for (std::size_t i = 0; i < bytes; ++i) {
    const std::size_t index = index_of(address + i);
    if (index == kNowhere) {
      fault.address = address + i;
      fault.what = "outside of the block's shared memory";
      fault.advice = "check the index, and the size given to launch";
      return false;
    }
    if (copies_[index] != 0) {
      fault.address = address + i;
      fault.what = "of shared memory into which an asynchronous copy is under way";
      fault.advice = "wait for the copy first, and let others pass a barrier";
      return false;
    }
    if ((access == Access::read || access == Access::atomic) && written_in_[index] != block_) {
      fault.address = address + i;
      fault.what = "of shared memory that nobody has written";
      fault.advice = "write it first";
      return false;
    }
    if (check_races_) {
      const Touch touch = {.moment = clocks_.now(thread), .access = access, .pc = image_offset(pc)};
      if (!note(histories_[index], touch, fault)) {
        fault.address = address + i;
        return false;
      }
    }
    if (access != Access::read) {
      written_in_[index] = block_;
    }
  }
  return true;
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
  if (touch.access == Access::read) {
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
    ++copies_[index_of(address + i)];
  }
}

void SharedMemory::end_copy(std::uintptr_t address, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    --copies_[index_of(address + i)];
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
