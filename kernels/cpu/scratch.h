// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"

namespace memphis::kernels::cpu {

// A cache line, and the widest vector.
constexpr std::int64_t kScratchAlignment = 64;

// What a piece of `count` elements takes of a Scratch.
template <class T>
constexpr std::int64_t scratch_bytes(std::int64_t count) {
  const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
  return (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

// One thread's memory for a task, handed out front to back. A copy goes on where it was taken, so a
// callee that is passed one uses what its caller has left. Contents are not initialised.
class Scratch {
 public:
  Scratch(std::byte* begin, std::int64_t bytes) : next_(begin), end_(begin + bytes) {}

  template <class T>
  T* take(std::int64_t count) {
    auto* result = reinterpret_cast<T*>(next_);
    require(scratch_bytes<T>(count) <= end_ - next_, "a scratch holds its pieces");
    next_ += scratch_bytes<T>(count);
    return result;
  }

 private:
  std::byte* next_;
  std::byte* end_;
};

// Memory for all threads that take part in an op, sized by its caller before they start, for the
// largest task that the operands' shapes allow: what a thread holds must not depend on the tasks
// that it happens to be handed, or memory would still grow after the first step. The calling thread
// keeps it from op to op, so one exists at a time.
class ThreadScratch {
 public:
  explicit ThreadScratch(std::int64_t bytes_per_thread)
      : bytes_per_thread_(scratch_bytes<std::byte>(bytes_per_thread)),
        nested_(team::is_inside()),
        begin_(kept_memory(bytes_per_thread_ * (nested_ ? 1 : team::num_threads()))) {}

  // The part of the thread that asks.
  Scratch mine() const {
    const std::int64_t thread = nested_ ? 0 : team::thread_index();
    return {begin_ + thread * bytes_per_thread_, bytes_per_thread_};
  }

 private:
  static constexpr std::align_val_t kAlignment{kScratchAlignment};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kAlignment); }
  };

  // Of the calling thread; only grows. What no thread writes to takes no physical memory.
  static std::byte* kept_memory(std::int64_t bytes) {
    thread_local std::unique_ptr<std::byte, Free> memory;
    thread_local std::int64_t capacity = 0;
    if (capacity < bytes) {
      memory.reset();
      capacity = 0;
      memory.reset(
          static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), kAlignment)));
      capacity = bytes;
    }
    return memory.get();
  }

  std::int64_t bytes_per_thread_;
  bool nested_;  // in a parallel region parallel_chunks() stays on the calling thread
  std::byte* begin_;
};

}  // namespace memphis::kernels::cpu
