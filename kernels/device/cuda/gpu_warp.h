// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

// What the threads of a warp and of a block do together.
namespace memphis::kernels::gpu {

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xFFFFFFFFU;

__device__ __forceinline__ int lane_id() {
  return static_cast<int>(threadIdx.x) % kWarpSize;
}
__device__ __forceinline__ int warp_id() {
  return static_cast<int>(threadIdx.x) / kWarpSize;
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(kFullMask, value, lane_mask);
}
template <class T>
__device__ __forceinline__ T shuffle_from(T value, int lane) {
  return __shfl_sync(kFullMask, value, lane);
}

// sm_90: true in one lane of the warp, always the same and not said which; all lanes call it. The
// compiler knows that one lane is left, and needs no loop over lanes for what only one may issue.
__device__ __forceinline__ bool elect_one() {
  unsigned elected;
  asm volatile(
      "{\n.reg .b32 lane;\n.reg .pred elected;\n"
      "elect.sync lane|elected, 0xFFFFFFFF;\n"
      "selp.u32 %0, 1, 0, elected;\n}"
      : "=r"(elected)::"memory");
  return elected != 0;
}

// Bit i of the result is lane i's `vote`.
__device__ __forceinline__ unsigned ballot(bool vote) {
  return __ballot_sync(kFullMask, vote);
}

// From the lane `delta` below; a lane that has none there receives its own value.
template <class T>
__device__ __forceinline__ T shuffle_up(T value, int delta) {
  return __shfl_up_sync(kFullMask, value, static_cast<unsigned>(delta));
}
// The lanes that hold the same value, as a bit mask.
__device__ __forceinline__ unsigned match_any(int value) {
  return __match_any_sync(kFullMask, value);
}
__device__ __forceinline__ int count_bits(unsigned mask) {
  return __popc(mask);
}

__device__ __forceinline__ void sync_threads() {
  __syncthreads();
}
__device__ __forceinline__ void sync_warp() {
  __syncwarp();
}
// Barrier `id` (1 to 15) of `num_threads` of the block, a multiple of 32: it opens when as many
// have come, by either function. Whole warps call these.
__device__ __forceinline__ void sync_named(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
__device__ __forceinline__ void arrive_named(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

}  // namespace memphis::kernels::gpu

#include "kernels/device/reduce.h"
