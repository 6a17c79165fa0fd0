// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/device/simt/executor.h"
#include "kernels/device/simt/instructions.h"
#include "kernels/device/simt/words.h"

// What the threads of a warp and of a block do together. The counterpart of device/cuda/gpu_warp.h.
namespace memphis::kernels::gpu {

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xFFFFFFFFU;

__forceinline__ int lane_id() {
  return static_cast<int>(threadIdx.x) % kWarpSize;
}
__forceinline__ int warp_id() {
  return static_cast<int>(threadIdx.x) / kWarpSize;
}

template <class T>
__forceinline__ T shuffle_from(T value, int lane) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t), "a shuffle moves at most 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::shuffle(kFullMask, bits, lane);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
__forceinline__ T shuffle_xor(T value, int lane_mask) {
  return shuffle_from(value, lane_id() ^ lane_mask);
}
template <class T>
__forceinline__ T shuffle_up(T value, int delta) {
  return shuffle_from(value, lane_id() >= delta ? lane_id() - delta : lane_id());
}

__forceinline__ bool elect_one() {
  return simt::elect_one(kFullMask);
}

__forceinline__ unsigned ballot(bool vote) {
  return simt::ballot(kFullMask, vote);
}
__forceinline__ unsigned match_any(int value) {
  return simt::match_any(kFullMask, static_cast<std::uint32_t>(value));
}
__forceinline__ int count_bits(unsigned mask) {
  return std::popcount(mask);
}

__forceinline__ void sync_threads() {
  simt::sync_block();
}
__forceinline__ void sync_warp() {
  simt::sync_warp(kFullMask);
}
__forceinline__ void sync_named(int id, int num_threads) {
  simt::sync_named(id, num_threads);
}
__forceinline__ void arrive_named(int id, int num_threads) {
  simt::arrive_named(id, num_threads);
}

}  // namespace memphis::kernels::gpu

#include "kernels/device/reduce.h"
