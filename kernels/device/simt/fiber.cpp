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

void Fiber::start(const FiberStack& stack, void (*entry)(void*), void* argument) {
  stack_bottom_ = stack.bottom();
  entry_ = entry;
  argument_ = argument;
  const auto begin = [](context::transfer_t from) {
    auto* const self = static_cast<Fiber*>(from.data);
    self->resumer_ = from.fctx;
    finish_switch(nullptr, &self->resumer_stack_, &self->resumer_stack_bytes_);
    self->entry_(self->argument_);
  };
  context_ = context::make_fcontext(
      reinterpret_cast<void*>(stack_bottom_ + FiberStack::kBytes), FiberStack::kBytes, begin);
}

void Fiber::resume() {
  void* own_stack = nullptr;
  start_switch(&own_stack, reinterpret_cast<const void*>(stack_bottom_), FiberStack::kBytes);
  context_ = context::jump_fcontext(context_, this).fctx;
  finish_switch(own_stack, nullptr, nullptr);
}

void Fiber::suspend() {
  void* own_stack = nullptr;
  start_switch(&own_stack, resumer_stack_, resumer_stack_bytes_);
  resumer_ = context::jump_fcontext(resumer_, nullptr).fctx;
  finish_switch(own_stack, &resumer_stack_, &resumer_stack_bytes_);
}

}  // namespace memphis::kernels::simt
