// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device/simt/fault.h"
#include "kernels/device/simt/options.h"

// Runs kernels on the processor: a block is a set of fibers on one thread of the machine, blocks in
// flight are on several. The functions below are called by the dialect headers (gpu_*.h), on the
// fiber of a GPU thread unless they say otherwise; places in reports are those of their callers.
namespace memphis::kernels::simt {

struct Index3 {
  unsigned x = 0;
  unsigned y = 0;
  unsigned z = 0;
};

// threadIdx and its like. They never change within a thread, hence `const`; by value, as reading
// them is no access to memory.
[[gnu::const]] Index3 thread_index();
[[gnu::const]] Index3 block_index();
[[gnu::const]] Index3 block_dim();
[[gnu::const]] Index3 grid_dim();

// The thread that runs now, block and thread counted in one dimension, x fastest. Variables, so
// that a debugger can test them where it cannot call a function on a fiber's stack:
//   break rmsnorm.cu:58 if memphis::kernels::simt::now.block == 2 &&
//   memphis::kernels::simt::now.thread == 17
struct Now {
  std::int64_t block = -1;  // no kernel runs
  int thread = -1;
};
extern thread_local Now now;

// The same for code: true in one thread of one block.
bool at(std::int64_t block, int thread);

class GridWaits;

struct KernelCall {
  const void* kernel = nullptr;  // the function: names the kernel in reports
  Index3 grid;
  Index3 block;
  std::size_t dynamic_shared_bytes = 0;
  int cluster = 1;                                  // blocks of one, neighbours in x
  void (*invoke)(const void* arguments) = nullptr;  // calls the kernel
  const void* arguments = nullptr;
  GridWaits* grid_waits = nullptr;  // the executor's own
};
// From the host, of a launch that an H100 would refuse: throws ContractError.
void check(const KernelCall& call);
// From the host, of one that it would not: runs every block to its end. Throws KernelFault.
void run(const KernelCall& call);

// __syncthreads: all threads of the block, at one place in the source.
void sync_block();
// bar.sync and bar.arrive: `num_threads` of the block at barrier `id`, 1 to 15.
void sync_named(int id, int num_threads);
void arrive_named(int id, int num_threads);
// __syncwarp
void sync_warp(unsigned mask);

// What the lanes of `mask` do together, an instruction such as a shuffle: each gives its operand,
// and the last to arrive calls `compute` for all. An entry of a lane that is not there is null.
using Compute = void (*)(void* const (&operands)[32], unsigned lanes);
void collective(const char* instruction, unsigned mask, void* operand, Compute compute);

// Reports that the calling thread reads from a lane that has left the kernel or is not in the mask.
[[noreturn]] void fault_here(const char* what, const char* advice);

// Suspends the thread until `ready(argument)`; `what` names it in the report of a block that hangs.
void wait_until(const char* what, bool (*ready)(void*), void* argument);

// cp.async: one copy of the calling thread, or zeros, that is made no earlier than its wait.
void copy_async(void* shared, const void* global, std::size_t bytes, bool valid);
void copy_async_commit();
void copy_async_wait(int pending);

// An access that the compiler does not see: by a fragment's load, or an atomic.
void check_access(const void* address, std::size_t bytes, Access access);

void* dynamic_shared();

}  // namespace memphis::kernels::simt
