// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <gpu_hopper_barrier.h>
#include <gpu_hopper_tma.h>
#include <gpu_warp.h>

#include "csrc/core/device.h"
#include "kernels/attention/attention_gpu.h"

// Tiles of heads 128 wide as TMA lays them out, and the rings that hand them from a producer to
// consumers. Shared by Hopper's forward and backward kernel.
namespace memphis::kernels::cuda {

constexpr int kHopperWidth = 128;
constexpr int kWarpgroup = 128;
constexpr int kWarpsOfGroup = kWarpgroup / gpu::kWarpSize;

// Half a tile: rows of 128 bytes under the swizzle, which take half of a head.
constexpr int kHalfWidth = 64;
constexpr int kRowBytes = kHalfWidth * 2;
template <int kRows>
struct Tile {
  bf16 half[2][kRows][kHalfWidth];
  static constexpr int kHalfBytes = kRows * kRowBytes;
};

// A place in a ring of two stages: one register.
class Place {
 public:
  static constexpr int kStages = 2;

  __device__ __forceinline__ int stage() const { return count_ % kStages; }
  // Of the stage's phase, and of the ring's where it has but one stage.
  __device__ __forceinline__ unsigned parity() const {
    return static_cast<unsigned>(count_) / kStages % 2;
  }
  __device__ __forceinline__ unsigned parity_of_one() const {
    return static_cast<unsigned>(count_) % 2;
  }
  __device__ __forceinline__ void advance() { ++count_; }
  // The same for a whole warp, where a shuffle tells the compiler that descriptors formed of the
  // stage are the same in all lanes: they cost a third of the instructions then.
  __device__ __forceinline__ void advance_uniformly() { count_ = gpu::shuffle_from(count_ + 1, 0); }

 private:
  int count_ = 0;
};

// This warp has read what the barrier guards.
__device__ __forceinline__ void release(gpu::Mbarrier* empty) {
  if (gpu::elect_one()) {
    gpu::mbarrier_arrive(empty);
  }
}

inline const DeviceInfo& this_device() {
  static const DeviceInfo info = device_info(Device::cuda);
  return info;
}

// [B, S, heads, 128] as boxes of `rows` positions, half a head behind the other. Positions past S are
// read as zeros and not written.
inline TensorMap tile_map(const HeadRows<const bf16>& heads,
                          std::int64_t B,
                          std::int64_t S,
                          std::int64_t num_heads,
                          std::int64_t rows) {
  constexpr std::int64_t kBytes = sizeof(bf16);
  return make_tensor_map({.data = heads.data,
                          .dtype = DType::bf16,
                          .dims = {kHalfWidth, S, 2, num_heads, B},
                          .stride_bytes = {heads.stride * kBytes,
                                           kRowBytes,
                                           kHopperWidth * kBytes,
                                           S * heads.stride * kBytes},
                          .box = {kHalfWidth, rows, 2, 1, 1},
                          .swizzle = Swizzle::bytes_128});
}

}  // namespace memphis::kernels::cuda
