// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_runtime.h>
#include <gpu_memory.h>

#include "kernels/device/register_pool.h"

// Barriers in shared memory, fences and register counts of sm_90a. PTX ISA: "mbarrier",
// "fence.proxy", "setmaxnreg".
namespace memphis::kernels::gpu {

// In shared memory, and touched by the functions below alone. A phase is complete when all its
// arrivals are made and all bytes that they expect have come; the next one begins at once.
struct alignas(8) Mbarrier {
  std::uint64_t state;
};

// One thread, once; then fence_mbarrier_init() in that thread if bulk copies are to complete on the
// barrier, and a barrier of the block before others use it.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// Gives the 8 bytes back to other uses. Nobody waits for it any more.
__device__ __forceinline__ void mbarrier_invalidate(Mbarrier* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// What the thread did before is seen by those who wait for the phase.
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(
                   shared_address(barrier))
               : "memory");
}
// Arrives after it lets the phase wait for `bytes` more from bulk copies.
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier* barrier, int bytes) {
  asm volatile(
      "{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
          shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Whether the phase of this parity (its number % 2) is complete: true at once for the parity of the
// phase before the first. Waits a while, as long as the hardware chooses.
__device__ __forceinline__ bool mbarrier_try_wait(Mbarrier* barrier, unsigned parity) {
  unsigned complete;
  asm volatile(
      "{\n.reg .pred complete;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
      "selp.u32 %0, 1, 0, complete;\n}"
      : "=r"(complete)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return complete != 0;
}
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// What this thread has written to shared memory may be read there by wgmma and by bulk copies, and
// what it has read may be written by these. Each thread that wrote or read calls it, before the
// barrier which the issuing thread waits at.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// What this thread has seen of global memory, after an acquire, comes before its bulk copies and
// reductions there.
__device__ __forceinline__ void fence_proxy_async_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// Registers a thread of this warpgroup from now on, a multiple of 8 from 24 to 256. All its threads
// call it. An increase waits until another warpgroup of the block has given up as many.
template <int kRegisters>
__device__ __forceinline__ void increase_max_registers() {
  static_assert(kRegisters % kRegisterUnit == 0 && kRegisters >= 24 && kRegisters <= 256,
                "as setmaxnreg takes");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void decrease_max_registers() {
  static_assert(kRegisters % kRegisterUnit == 0 && kRegisters >= 24 && kRegisters <= 256,
                "as setmaxnreg takes");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace memphis::kernels::gpu
