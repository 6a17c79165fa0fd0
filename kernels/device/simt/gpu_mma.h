// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <gpu_math.h>
#include <gpu_memory.h>

#include "kernels/device/simt/instructions.h"

// Tensor cores. The counterpart of device/cuda/gpu_mma.h, which says what each function promises.
namespace memphis::kernels::gpu {

__forceinline__ void load_matrix_x4(std::uint32_t (&fragment)[4], const void* row) {
  simt::load_matrix_x4(fragment, row, false);
}
__forceinline__ void load_matrix_x4_transposed(std::uint32_t (&fragment)[4], const void* row) {
  simt::load_matrix_x4(fragment, row, true);
}

__forceinline__ void store_matrix_x4(void* row, const std::uint32_t (&fragment)[4]) {
  simt::store_matrix_x4(row, fragment, false);
}
__forceinline__ void store_matrix_x4_transposed(void* row, const std::uint32_t (&fragment)[4]) {
  simt::store_matrix_x4(row, fragment, true);
}

__forceinline__ void mma_m16n8k16(float (&d)[4],
                                  const std::uint32_t (&a)[4],
                                  std::uint32_t b0,
                                  std::uint32_t b1) {
  simt::mma_m16n8k16(d, a, b0, b1);
}

}  // namespace memphis::kernels::gpu
