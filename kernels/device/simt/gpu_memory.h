// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/device/simt/executor.h"
#include "kernels/device/simt/instructions.h"
#include "kernels/device/simt/words.h"
#include "kernels/device/vector.h"

// Atomic and asynchronous accesses to memory, and shared memory. The counterpart of
// device/cuda/gpu_memory.h.
namespace memphis::kernels::gpu {

__forceinline__ void atomic_add(int* counter, int value) {
  simt::atomic_add(counter, value);
}

__forceinline__ int fetch_add(int* counter, int value) {
  return simt::fetch_add(counter, value);
}
__forceinline__ void store_release(int* flag, int value) {
  simt::store_release(flag, value);
}
__forceinline__ int load_acquire(const int* flag) {
  return simt::load_acquire(flag);
}
__forceinline__ void wait_at_least(const int* flag, int value) {
  simt::wait_at_least(flag, value);
}

__forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
  simt::copy_async(shared, global, 16, valid);
}
__forceinline__ void copy_async_commit() {
  simt::copy_async_commit();
}
template <int kPending>
__forceinline__ void copy_async_wait() {
  simt::copy_async_wait(kPending);
}

template <class T>
__forceinline__ T* dynamic_shared() {
  return static_cast<T*>(simt::dynamic_shared());
}

}  // namespace memphis::kernels::gpu
