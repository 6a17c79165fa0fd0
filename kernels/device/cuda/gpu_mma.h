// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_runtime.h>
#include <gpu_math.h>
#include <gpu_memory.h>

#include "csrc/core/dtype.h"

// Tensor cores of sm_80 and newer. Layouts: PTX ISA, "Matrix fragments for mma.m16n8k16" and
// "ldmatrix".
namespace memphis::kernels::gpu {

// Four 8x8 matrices of 16-bit elements from shared memory; lane i gives the address of row i % 8 of
// matrix i / 8 and receives of each matrix row lane / 4, columns 2 * (lane % 4) and the next.
__device__ __forceinline__ void load_matrix_x4(std::uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, each matrix transposed on the way.
__device__ __forceinline__ void load_matrix_x4_transposed(std::uint32_t (&fragment)[4],
                                                          const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// sm_90: what load_matrix_x4 reads, written: lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void store_matrix_x4(void* row, const std::uint32_t (&fragment)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(fragment[0]),
      "r"(fragment[1]),
      "r"(fragment[2]),
      "r"(fragment[3])
      : "memory");
}
// The same, each matrix transposed on the way.
__device__ __forceinline__ void store_matrix_x4_transposed(void* row,
                                                           const std::uint32_t (&fragment)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(row)),
               "r"(fragment[0]),
               "r"(fragment[1]),
               "r"(fragment[2]),
               "r"(fragment[3])
               : "memory");
}

// d = a b + d with a [16, 16] row-major, b [16, 8] column-major, both bf16, d [16, 8] f32. Lane l
// holds of d: (l/4, 2(l%4)), the next column, (l/4 + 8, 2(l%4)), the next column.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4],
                                             const std::uint32_t (&a)[4],
                                             std::uint32_t b0,
                                             std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace memphis::kernels::gpu
