// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_runtime.h>
#include <gpu_math.h>

#include "csrc/core/dtype.h"

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

// kCount elements of T as floats, and back, in the widest accesses that kCount allows: whole
// vectors of aligned addresses, or one element (kCount 1) of any address.
template <class T, int kCount>
__device__ __forceinline__ void load_floats(const T* address, float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = to_float(*address);
  } else {
    constexpr int kWidth = kVectorWidth<T>;
    static_assert(kCount % kWidth == 0, "whole vectors");
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      const Vector<T> vector = load_vector(address + first);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[first + i] = to_float(vector.values[i]);
      }
    }
  }
}
template <class T, int kCount>
__device__ __forceinline__ void store_floats(T* address, const float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    *address = from_float<T>(values[0]);
  } else {
    constexpr int kWidth = kVectorWidth<T>;
    static_assert(kCount % kWidth == 0, "whole vectors");
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      Vector<T> vector;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        vector.values[i] = from_float<T>(values[first + i]);
      }
      store_vector(address + first, vector);
    }
  }
}

// Adds to a counter that threads share. Integers only: their sum does not depend on the order.
__device__ __forceinline__ void atomic_add(int* counter, int value) {
  atomicAdd(counter, value);
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
