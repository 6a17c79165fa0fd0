// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/fiber.h"

#include <boost/context/detail/fcontext.hpp>
#include <sys/mman.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "kernels/device/simt/sanitizer.h"

namespace memphis::kernels::simt {
namespace {

namespace context = boost::context::detail;

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

FiberStack::FiberStack() {
  const std::size_t guard = page_bytes();
  mapping_ = mmap(nullptr,
                  kBytes + 2 * guard,
                  PROT_NONE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK,
                  -1,
                  0);
  if (mapping_ == MAP_FAILED ||
      mprotect(static_cast<char*>(mapping_) + guard, kBytes, PROT_READ | PROT_WRITE) != 0) {
    throw PreflightError(
        "cannot map the stack of a simulated GPU thread (the system refused); raise "
        "vm.max_map_count");
  }
}

FiberStack::~FiberStack() {
  if (mapping_ != nullptr) {
    munmap(mapping_, kBytes + 2 * page_bytes());
  }
}

std::uintptr_t FiberStack::bottom() const {
  return reinterpret_cast<std::uintptr_t>(mapping_) + page_bytes();
}

// What is told by the stack that is left, on which it lies, to the one that is entered.
struct Fiber::Switch {
  void** context;            // where that of the stack that is left goes
  Fiber* entered = nullptr;  // for its first turn
  // Where the stack that is left goes, or null.
  const void** stack = nullptr;
  std::size_t* stack_bytes = nullptr;

  static Switch* arrive(const context::transfer_t& from, void* own_stack) {
    auto* const how = static_cast<Switch*>(from.data);
    *how->context = from.fctx;
    finish_switch(own_stack, how->stack, how->stack_bytes);
    return how;
  }
};

void Fiber::start(const FiberStack& stack, void (*entry)(void*), void* argument, Outside& outside) {
  stack_bottom_ = stack.bottom();
  outside_ = &outside;
  entry_ = entry;
  argument_ = argument;
  const auto begin = [](context::transfer_t from) {
    const Fiber* const self = Switch::arrive(from, nullptr)->entered;
    self->entry_(self->argument_);
  };
  context_ = context::make_fcontext(
      reinterpret_cast<void*>(stack_bottom_ + FiberStack::kBytes), FiberStack::kBytes, begin);
}

void Fiber::enter_from(void* context, const void* stack, std::size_t stack_bytes, Switch& how) {
  void* own_stack = nullptr;
  start_switch(&own_stack, stack, stack_bytes);
  Switch::arrive(context::jump_fcontext(context, &how), own_stack);
}

void Fiber::resume() {
  Switch how = {.context = &outside_->context,
                .entered = this,
                .stack = &outside_->stack,
                .stack_bytes = &outside_->stack_bytes};
  enter_from(context_, reinterpret_cast<const void*>(stack_bottom_), FiberStack::kBytes, how);
}

void Fiber::suspend() {
  Switch how = {.context = &context_};
  enter_from(outside_->context, outside_->stack, outside_->stack_bytes, how);
}

void Fiber::hand_on_to(Fiber& other) {
  Switch how = {.context = &context_, .entered = &other};
  enter_from(
      other.context_, reinterpret_cast<const void*>(other.stack_bottom_), FiberStack::kBytes, how);
}

}  // namespace memphis::kernels::simt
