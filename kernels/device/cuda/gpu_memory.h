// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "csrc/core/dtype.h"
#include <gpu_math.h>

// Wide and asynchronous accesses to memory.
namespace memphis::kernels::gpu {

// Elements of T in the widest access of a thread, 16 bytes.
template <class T>
constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

// 16 bytes of T, loaded and stored by one instruction. Addresses are 16-byte aligned.
template <class T>
struct alignas(16) Vector {
  T values[kVectorWidth<T>];
};

template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* address) {
  return *reinterpret_cast<const Vector<T>*>(address);
}
template <class T>
__device__ __forceinline__ void store_vector(T* address, const Vector<T>& vector) {
  *reinterpret_cast<Vector<T>*>(address) = vector;
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

}  // namespace memphis::kernels::gpu
