// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/device/register_pool.h"
#include "kernels/device/simt/hopper.h"
#include "kernels/device/simt/words.h"

// Barriers in shared memory, fences and register counts of sm_90a. The counterpart of
// device/cuda/gpu_hopper_barrier.h, which says what each function promises.
namespace memphis::kernels::gpu {

// Only marks the place: the executor keeps the barrier's state.
struct alignas(8) Mbarrier {
  std::uint64_t state;
};

__forceinline__ void mbarrier_init(Mbarrier* barrier, int arrivals) {
  simt::mbarrier_init(barrier, arrivals);
}
__forceinline__ void mbarrier_invalidate(Mbarrier* barrier) {
  simt::mbarrier_invalidate(barrier);
}
__forceinline__ void fence_mbarrier_init() {
  simt::fence_mbarrier_init();
}

__forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
  simt::mbarrier_arrive(barrier, 1, 0);
}
__forceinline__ void mbarrier_arrive_expect(Mbarrier* barrier, int bytes) {
  simt::mbarrier_arrive(barrier, 1, bytes);
}

// Suspends until the phase is complete: the time limit after which hardware returns is never over.
__forceinline__ bool mbarrier_try_wait(Mbarrier* barrier, unsigned parity) {
  simt::mbarrier_wait(barrier, parity);
  return true;
}
__forceinline__ void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
  simt::mbarrier_wait(barrier, parity);
}

__forceinline__ void fence_proxy_async() {
  simt::fence_proxy_async();
}

// Bulk copies see global memory as threads do here.
__forceinline__ void fence_proxy_async_global() {}

template <int kRegisters>
__forceinline__ void set_max_registers(bool gives_up) {
  static_assert(kRegisters % kRegisterUnit == 0 && kRegisters >= 24 && kRegisters <= 256,
                "as setmaxnreg takes");
  simt::set_max_registers(kRegisters, gives_up);
}
template <int kRegisters>
__forceinline__ void increase_max_registers() {
  set_max_registers<kRegisters>(false);
}
template <int kRegisters>
__forceinline__ void decrease_max_registers() {
  set_max_registers<kRegisters>(true);
}

}  // namespace memphis::kernels::gpu
