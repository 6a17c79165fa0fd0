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

// Every lane receives the sum (maximum) over the warp, formed in the same order in every lane: a
// butterfly of commutative sums gives all lanes the same bits.
__device__ __forceinline__ float warp_sum(float value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    value += shuffle_xor(value, mask);
  }
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, shuffle_xor(value, mask));
  }
  return value;
}

// Every thread of a one-dimensional block receives the sum over the block. `scratch` is shared
// memory of at least 32 floats; the block may use it again at once. All threads must call.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  if (lane_id() == 0) {
    scratch[warp_id()] = value;
  }
  sync_threads();  // all partial sums are written
  const int num_warps = (static_cast<int>(blockDim.x) + kWarpSize - 1) / kWarpSize;
  value = warp_sum(lane_id() < num_warps ? scratch[lane_id()] : 0.0F);
  sync_threads();  // all partial sums are read: scratch is free
  return value;
}
__device__ __forceinline__ float block_max(float value, float* scratch) {
  value = warp_max(value);
  if (lane_id() == 0) {
    scratch[warp_id()] = value;
  }
  sync_threads();  // all partial maxima are written
  const int num_warps = (static_cast<int>(blockDim.x) + kWarpSize - 1) / kWarpSize;
  value = warp_max(lane_id() < num_warps ? scratch[lane_id()] : scratch[0]);
  sync_threads();  // all partial maxima are read: scratch is free
  return value;
}

}  // namespace memphis::kernels::gpu
