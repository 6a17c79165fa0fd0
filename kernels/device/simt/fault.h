// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "csrc/core/error.h"

namespace memphis::kernels::simt {

// A kernel did what it must not: what launch() throws. The text names the kernel, the block, the
// thread, the source line, what happened there and, for a race, the other thread and its line.
class KernelFault : public Error {
 public:
  explicit KernelFault(const std::string& message) : Error(ExitCode::internal, message) {}
};

enum class Access : std::uint8_t {
  read,
  write,
  atomic,
  copy,         // cp.async
  async_read,   // by the async proxy: TMA and wgmma
  async_write,  // by TMA
};
constexpr bool is_read(Access access) {
  return access == Access::read || access == Access::async_read;
}

// What a thread of the executor leaves when it can go no further. Plain data: it is found on the
// stack of a fiber that is never resumed, where nothing is destroyed.
struct Fault {
  const char* what = nullptr;  // a literal; null: no fault
  const char* advice = nullptr;
  int thread = 0;
  const void* pc = nullptr;
  // Of a fault in memory.
  std::uintptr_t address = 0;
  std::size_t bytes = 0;
  Access access = Access::read;
  // Of a race: the earlier access.
  bool has_other = false;
  int other_thread = 0;
  const void* other_pc = nullptr;
  Access other_access = Access::read;
};

}  // namespace memphis::kernels::simt
