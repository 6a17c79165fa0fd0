// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_runtime.h>
#include <gpu_memory.h>

#include "kernels/device/swizzle.h"

// Tensor cores of sm_90a. PTX ISA: "wgmma.mma_async", "Asynchronous warpgroup-level matrix".
// All functions are called by the 128 threads of a warpgroup, four warps from a multiple of four,
// with the same arguments but for registers.
namespace memphis::kernels::gpu {

// Names a tile in dynamic shared memory; strides as matrix_descriptor() says.
__device__ __forceinline__ std::uint64_t wgmma_descriptor(const void* tile,
                                                          Swizzle swizzle,
                                                          int leading_bytes,
                                                          int stride_bytes) {
  return matrix_descriptor(shared_address(tile), swizzle, leading_bytes, stride_bytes);
}

// Keeps the compiler from moving what it does with these registers past here.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+f"(d[i])::"memory");
  }
}
template <int kCount>
__device__ __forceinline__ void pin_registers(std::uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+r"(a[i])::"memory");
  }
}
template <int kSteps, int kCount>
__device__ __forceinline__ void pin_registers(std::uint32_t (&a)[kSteps][kCount]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    pin_registers(a[i]);
  }
}

// Before the first wgmma, and whenever accumulators or fragments of `a` were written since the last
// wait. Takes the accumulators and fragments that follow: float[n], uint32_t[4], uint32_t[k][4].
template <class... Registers>
__device__ __forceinline__ void wgmma_fence(Registers&... registers) {
  (pin_registers(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// The products issued since the last commit become a group.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Returns when all but the newest `kPending` groups are done: their accumulators and fragments of
// `a`, given here, may be used, and what this warp read of shared memory may be overwritten.
// Another warp may still read: pass a barrier first.
template <int kPending, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (pin_registers(registers), ...);
}

// wgmma<major of a, major of b>(d, a, b, accumulate): d = a b, plus d if `accumulate`, with a
// [64, 16] and b [16, n] bf16 in shared memory, named by descriptors, and d [64, n] f32, n being 8,
// 16, 32, 64, 128 or 256. Thread t holds n / 2 of d: with w = t / 32, g = t % 32 / 4 and c = t % 4,
// d[4 j] and the next are (16 w + g, 8 j + 2 c) and the next column, d[4 j + 2] and the next the
// same 8 rows on. Until the wait nobody touches d or writes a or b.
//
// wgmma<major of b>(d, a, b, accumulate): the same with a in registers, which the four lanes of
// each row hold as for mma_m16n8k16, each warp its 16 rows.
//
// PTX names each register, so there is one function for each n, all of this form.
#define MEMPHIS_TEN(t) \
  ",%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9"
#define MEMPHIS_NAMES_4 "%0,%1,%2,%3"
#define MEMPHIS_NAMES_8 MEMPHIS_NAMES_4 ",%4,%5,%6,%7"
#define MEMPHIS_NAMES_16 MEMPHIS_NAMES_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define MEMPHIS_NAMES_32 MEMPHIS_NAMES_16 ",%16,%17,%18,%19" MEMPHIS_TEN(2) ",%30,%31"
#define MEMPHIS_NAMES_64                                             \
  MEMPHIS_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39" MEMPHIS_TEN(4) \
      MEMPHIS_TEN(5) ",%60,%61,%62,%63"
#define MEMPHIS_NAMES_128                                                                  \
  MEMPHIS_NAMES_64 ",%64,%65,%66,%67,%68,%69" MEMPHIS_TEN(7) MEMPHIS_TEN(8) MEMPHIS_TEN(9) \
      MEMPHIS_TEN(10) MEMPHIS_TEN(11) ",%120,%121,%122,%123,%124,%125,%126,%127"

#define MEMPHIS_REGISTERS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MEMPHIS_REGISTERS_8(i) MEMPHIS_REGISTERS_4(i), MEMPHIS_REGISTERS_4(i + 4)
#define MEMPHIS_REGISTERS_16(i) MEMPHIS_REGISTERS_8(i), MEMPHIS_REGISTERS_8(i + 8)
#define MEMPHIS_REGISTERS_32(i) MEMPHIS_REGISTERS_16(i), MEMPHIS_REGISTERS_16(i + 16)
#define MEMPHIS_REGISTERS_64(i) MEMPHIS_REGISTERS_32(i), MEMPHIS_REGISTERS_32(i + 32)
#define MEMPHIS_REGISTERS_128(i) MEMPHIS_REGISTERS_64(i), MEMPHIS_REGISTERS_64(i + 64)

// The names o0 to o6 are the numbers of the operands after the `count` registers of d.
#define MEMPHIS_WGMMA(n, count, o0, o1, o2, o3, o4, o5, o6)                                  \
  template <Major kMajorA, Major kMajorB>                                                    \
  __device__ __forceinline__ void wgmma(                                                     \
      float(&d)[count], std::uint64_t a, std::uint64_t b, bool accumulate) {                 \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %" #o2                  \
                 ", 0;\n"                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #n                                      \
                 "k16.f32.bf16.bf16 {" MEMPHIS_NAMES_##count                                 \
                 "}, "                                                                       \
                 "%" #o0 ", %" #o1 ", accumulate, 1, 1, %" #o3 ", %" #o4 ";\n}"              \
                 : MEMPHIS_REGISTERS_##count(0)                                              \
                 : "l"(a),                                                                   \
                   "l"(b),                                                                   \
                   "r"(static_cast<int>(accumulate)),                                        \
                   "n"(static_cast<int>(kMajorA)),                                           \
                   "n"(static_cast<int>(kMajorB)));                                          \
  }                                                                                          \
  template <Major kMajorB>                                                                   \
  __device__ __forceinline__ void wgmma(                                                     \
      float(&d)[count], const std::uint32_t(&a)[4], std::uint64_t b, bool accumulate) {      \
    asm volatile(                                                                            \
        "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %" #o5                           \
        ", 0;\n"                                                                             \
        "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" MEMPHIS_NAMES_##count   \
        "}, "                                                                                \
        "{%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4 ", accumulate, 1, 1, %" #o6 ";\n}" \
        : MEMPHIS_REGISTERS_##count(0)                                                       \
        : "r"(a[0]),                                                                         \
          "r"(a[1]),                                                                         \
          "r"(a[2]),                                                                         \
          "r"(a[3]),                                                                         \
          "l"(b),                                                                            \
          "r"(static_cast<int>(accumulate)),                                                 \
          "n"(static_cast<int>(kMajorB)));                                                   \
  }
MEMPHIS_WGMMA(8, 4, 4, 5, 6, 7, 8, 9, 10)
MEMPHIS_WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14)
MEMPHIS_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
MEMPHIS_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
MEMPHIS_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
MEMPHIS_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)

#undef MEMPHIS_WGMMA
#undef MEMPHIS_REGISTERS_128
#undef MEMPHIS_REGISTERS_64
#undef MEMPHIS_REGISTERS_32
#undef MEMPHIS_REGISTERS_16
#undef MEMPHIS_REGISTERS_8
#undef MEMPHIS_REGISTERS_4
#undef MEMPHIS_NAMES_128
#undef MEMPHIS_NAMES_64
#undef MEMPHIS_NAMES_32
#undef MEMPHIS_NAMES_16
#undef MEMPHIS_NAMES_8
#undef MEMPHIS_NAMES_4
#undef MEMPHIS_TEN

}  // namespace memphis::kernels::gpu
