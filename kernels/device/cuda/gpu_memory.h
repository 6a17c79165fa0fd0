// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "kernels/device/vector.h"

// Atomic and asynchronous accesses to memory, and shared memory.
namespace memphis::kernels::gpu {

// Adds to a counter that threads share. Integers only: their sum does not depend on the order.
__device__ __forceinline__ void atomic_add(int* counter, int value) {
  atomicAdd(counter, value);
}

// Adds and returns what was there before: the next ticket. Orders nothing else.
__device__ __forceinline__ int fetch_add(int* counter, int value) {
  return atomicAdd(counter, value);
}

// Flags in global memory between blocks of one launch. What a thread did before store_release is
// seen by a thread that reads the value by load_acquire; a barrier carries it from and to the other
// threads of the two blocks. Bulk stores and reductions count as done when tma_wait has returned.
__device__ __forceinline__ void store_release(int* flag, int value) {
  asm volatile("st.release.gpu.s32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ __forceinline__ int load_acquire(const int* flag) {
  int value;
  asm volatile("ld.acquire.gpu.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
// Returns when the flag is `value` or more. Who raises it must not wait for this block, nor for
// room on the GPU: blocks begin in any order.
__device__ __forceinline__ void wait_at_least(const int* flag, int value) {
  while (load_acquire(flag) < value) {
  }
}

// The address of shared memory as PTX wants it.
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// cp.async (sm_80): 16 bytes from global to shared memory, past the registers and L1. With `valid`
// false the 16 bytes are zero-filled and nothing is read.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
  const int source_bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global),
               "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Returns when all but the newest `kPending` groups of this thread have arrived.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// The block's dynamic shared memory (Launch::shared_bytes), aligned for every access up to TMA's.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

}  // namespace memphis::kernels::gpu
