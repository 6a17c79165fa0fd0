// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace memphis::kernels::simt {

// The stack of a fiber, between two pages that nothing may touch: a kernel that recurses or holds
// too much in local arrays stops there.
class FiberStack {
 public:
  FiberStack();
  ~FiberStack();
  FiberStack(FiberStack&& other) noexcept : mapping_(std::exchange(other.mapping_, nullptr)) {}
  FiberStack& operator=(FiberStack&&) = delete;
  FiberStack(const FiberStack&) = delete;
  FiberStack& operator=(const FiberStack&) = delete;

  std::uintptr_t bottom() const;
  static constexpr std::size_t kBytes = std::size_t{128} << 10;

 private:
  void* mapping_;
};

// One thread of a block: runs `entry(argument)` on a stack of its own and hands control back and
// forth with whoever resumes it. Abandoning a fiber half way is allowed: what lives on its stack is
// not destroyed, and kernels keep nothing there that owns anything.
class Fiber {
 public:
  // `entry` must not return: it ends with a last suspend(). Nothing runs before resume().
  void start(const FiberStack& stack, void (*entry)(void*), void* argument);
  // From outside: runs the fiber until it suspends.
  void resume();
  // From within the fiber: back to the caller of resume().
  void suspend();

 private:
  void* context_ = nullptr;  // of the fiber while it is suspended
  void* resumer_ = nullptr;  // of the resumer while it runs
  std::uintptr_t stack_bottom_ = 0;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  // AddressSanitizer's view of the resumer's stack.
  const void* resumer_stack_ = nullptr;
  std::size_t resumer_stack_bytes_ = 0;
};

}  // namespace memphis::kernels::simt
