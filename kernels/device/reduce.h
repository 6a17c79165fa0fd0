// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gpu_warp.h>

// Sums and maxima over a warp and over a block, made of the dialect's instructions: the last part
// of its gpu_warp.h.
namespace memphis::kernels::gpu {

// Each of kLanes neighbouring lanes, a power of two, receives the sum (maximum) over them, formed in
// the same order in every lane: a butterfly of commutative sums gives all lanes the same bits.
template <int kLanes>
__device__ __forceinline__ float lanes_sum(float value) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    value += shuffle_xor(value, mask);
  }
  return value;
}
template <int kLanes>
__device__ __forceinline__ float lanes_max(float value) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, shuffle_xor(value, mask));
  }
  return value;
}
__device__ __forceinline__ float warp_sum(float value) {
  return lanes_sum<kWarpSize>(value);
}
__device__ __forceinline__ float warp_max(float value) {
  return lanes_max<kWarpSize>(value);
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
