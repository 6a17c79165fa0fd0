// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "kernels/device/simt/executor.h"
#include "kernels/device/simt/fault.h"
#include "kernels/device/simt/lanes.h"
#include "kernels/device/simt/shared_memory.h"

namespace memphis::kernels::simt {

// What the units of a block (its mbarriers, bulk copies and warpgroups) ask of it. The block has
// them, and they know no more of it than this. All of it is of the thread that runs, which is at
// `pc`, but for shared().
class UnitHost {
 public:
  virtual SharedMemory& shared() = 0;
  virtual int thread_id() const = 0;
  // Lanes of the thread's warp that have not left the kernel.
  virtual unsigned lanes_present() const = 0;
  // A place in the kernel, for a report of a thread that has left it.
  virtual const void* kernel_pc() const = 0;

  virtual void access(const void* address, std::size_t bytes, Access access, const void* pc) = 0;
  virtual void collective(
      const char* instruction, unsigned mask, void* operand, Compute compute, const void* pc) = 0;
  // Suspends the thread; `ready` is asked when no thread can go on otherwise.
  virtual void wait_until(const char* what,
                          bool (*ready)(void*),
                          void* argument,
                          const void* pc) = 0;
  [[noreturn]] virtual void stop(const Fault& fault) = 0;

 protected:
  UnitHost() = default;
  ~UnitHost() = default;
  UnitHost(const UnitHost&) = default;
  UnitHost& operator=(const UnitHost&) = default;
};

}  // namespace memphis::kernels::simt
