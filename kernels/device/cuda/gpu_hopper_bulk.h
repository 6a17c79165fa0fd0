// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>
#include <gpu_hopper_barrier.h>
#include <gpu_memory.h>

// Bulk copies of contiguous bytes, and the groups of all bulk stores. PTX ISA: "cp.async.bulk",
// "cp.reduce.async.bulk", "cp.async.bulk.commit_group".
namespace memphis::kernels::gpu {

// `bytes` from global to shared memory, a multiple of 16 as both addresses are. One thread calls
// it. Complete, and counted, at the barrier's phase, as tma_load is.
__device__ __forceinline__ void bulk_load(void* shared,
                                          const void* global,
                                          int bytes,
                                          Mbarrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(global),
      "r"(bytes),
      "r"(shared_address(barrier))
      : "memory");
}

// The other way. The threads that wrote `shared` have called fence_proxy_async before a barrier.
// One thread calls this, commits and waits.
__device__ __forceinline__ void bulk_store(void* global, const void* shared, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(shared_address(shared)),
               "r"(bytes)
               : "memory");
}
// The same, adding to the floats that are there, each by itself: what several threads add to one
// element has no order but that of their waits.
__device__ __forceinline__ void bulk_reduce_add(float* global, const float* shared, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
      "r"(shared_address(shared)),
      "r"(bytes)
      : "memory");
}

// Bulk stores and reductions of this thread since the last commit become a group.
__device__ __forceinline__ void tma_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Returns when all but the newest `kPending` groups have read shared memory: it may be overwritten.
template <int kPending>
__device__ __forceinline__ void tma_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
// Returns when they have written global memory as well.
template <int kPending>
__device__ __forceinline__ void tma_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace memphis::kernels::gpu
