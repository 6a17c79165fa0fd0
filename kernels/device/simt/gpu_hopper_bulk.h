// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gpu_hopper_barrier.h>

#include "kernels/device/simt/hopper.h"
#include "kernels/device/simt/words.h"

// Bulk copies of contiguous bytes, and the groups of all bulk stores. The counterpart of
// device/cuda/gpu_hopper_bulk.h, which says what each function promises.
namespace memphis::kernels::gpu {

__forceinline__ void bulk_load(void* shared, const void* global, int bytes, Mbarrier* barrier) {
  simt::bulk_load(shared, global, bytes, barrier);
}
__forceinline__ void bulk_store(void* global, const void* shared, int bytes) {
  simt::bulk_store(global, shared, bytes, simt::Combine::replace);
}
__forceinline__ void bulk_reduce_add(float* global, const float* shared, int bytes) {
  simt::bulk_store(global, shared, bytes, simt::Combine::add_floats);
}

__forceinline__ void tma_commit() {
  simt::tma_commit();
}
template <int kPending>
__forceinline__ void tma_wait_read() {
  simt::tma_wait(kPending, true);
}
template <int kPending>
__forceinline__ void tma_wait() {
  simt::tma_wait(kPending, false);
}

}  // namespace memphis::kernels::gpu
