// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/device/simt/hopper.h"
#include "kernels/device/simt/words.h"
#include "kernels/device/swizzle.h"

// Tensor cores of sm_90a. The counterpart of device/cuda/gpu_hopper_wgmma.h, which says what each
// function promises.
namespace memphis::kernels::gpu {

__forceinline__ std::uint64_t wgmma_descriptor(const void* tile,
                                               Swizzle swizzle,
                                               int leading_bytes,
                                               int stride_bytes) {
  return matrix_descriptor(simt::shared_address(tile), swizzle, leading_bytes, stride_bytes);
}

template <class Registers>
__forceinline__ void pin_registers([[maybe_unused]] Registers& registers) {}

template <class... Registers>
__forceinline__ void wgmma_fence([[maybe_unused]] Registers&... registers) {
  simt::wgmma_fence();
}

template <Major kMajorA, Major kMajorB, int kCount>
__forceinline__ void wgmma(float (&d)[kCount], std::uint64_t a, std::uint64_t b, bool accumulate) {
  simt::wgmma({.n = 2 * kCount,
               .a_in_registers = false,
               .a = a,
               .b = b,
               .major_a = kMajorA,
               .major_b = kMajorB,
               .accumulate = accumulate},
              d,
              nullptr);
}
template <Major kMajorB, int kCount>
__forceinline__ void wgmma(float (&d)[kCount],
                           const std::uint32_t (&a)[4],
                           std::uint64_t b,
                           bool accumulate) {
  simt::wgmma({.n = 2 * kCount,
               .a_in_registers = true,
               .a = 0,
               .b = b,
               .major_a = Major::k,
               .major_b = kMajorB,
               .accumulate = accumulate},
              d,
              a);
}

__forceinline__ void wgmma_commit() {
  simt::wgmma_commit();
}
// A fragment that is named here is compared with what the products took of it.
__forceinline__ void keep_fragments(const float* /*accumulators*/, std::size_t /*bytes*/) {}
__forceinline__ void keep_fragments(const std::uint32_t* a, std::size_t bytes) {
  simt::wgmma_keep(a, bytes);
}
template <int kCount>
__forceinline__ void keep_fragments(const std::uint32_t (*a)[kCount], std::size_t bytes) {
  simt::wgmma_keep(a[0], bytes);
}
template <int kPending, class... Registers>
__forceinline__ void wgmma_wait(Registers&... registers) {
  (keep_fragments(registers, sizeof(registers)), ...);
  simt::wgmma_wait(kPending);
}

}  // namespace memphis::kernels::gpu
