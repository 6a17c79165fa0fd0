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

// One thread of a block: runs `entry(argument)` on a stack of its own and hands control on to another
// fiber or back to who resumed the first. Abandoning a fiber half way is allowed: what lives on its
// stack is not destroyed, and kernels keep nothing there that owns anything.
class Fiber {
 public:
  // Whoever resumes fibers, while one of them runs.
  struct Outside {
    void* context = nullptr;
    // AddressSanitizer's view of its stack.
    const void* stack = nullptr;
    std::size_t stack_bytes = 0;
  };

  // `entry` must not return: it ends with a last suspend() or hand_on_to(). Nothing runs before the
  // fiber's turn.
  void start(const FiberStack& stack, void (*entry)(void*), void* argument, Outside& outside);
  // From outside: runs the fiber, and those that it hands on to, until one suspends.
  void resume();
  // From within the fiber: back to the caller of resume().
  void suspend();
  // From within the fiber: `other` runs, and this one when it has its turn again. Half the work of
  // going by the outside.
  void hand_on_to(Fiber& other);

 private:
  struct Switch;
  void enter_from(void* context, const void* stack, std::size_t stack_bytes, Switch& how);

  void* context_ = nullptr;  // while it is suspended
  std::uintptr_t stack_bottom_ = 0;
  Outside* outside_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace memphis::kernels::simt
