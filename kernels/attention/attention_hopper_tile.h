// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <gpu_hopper_tma.h>
#include <gpu_hopper_wgmma.h>

#include "kernels/attention/attention_gpu.h"
#include "kernels/device/hopper_ring.h"

// Tiles of heads 128 wide as TMA lays them out. Shared by Hopper's forward and backward kernel.
namespace memphis::kernels::cuda {

constexpr int kHopperWidth = 128;
using Place = RingPlace<2>;

// Half a tile: rows of 128 bytes under the swizzle, which take half of a head.
constexpr int kHalfWidth = 64;
constexpr int kRowBytes = kHalfWidth * 2;
template <int kRows>
struct Tile {
  bf16 half[2][kRows][kHalfWidth];
  static constexpr int kHalfBytes = kRows * kRowBytes;
};

// What lies in such rows, as an operand of wgmma. `leading_bytes` is from one 64 of m or n to the
// next where these are contiguous (Major::mn): kHalfBytes in a tile. It is not used where k is
// contiguous, nor where 64 are all: one descriptor then serves products of either kind.
constexpr int kLeadingUnused = kChunkBytes;
__device__ __forceinline__ std::uint64_t rows_descriptor(const void* rows, int leading_bytes) {
  constexpr int kPeriodBytes = 8 * kRowBytes;  // of the swizzle
  return gpu::wgmma_descriptor(rows, Swizzle::bytes_128, leading_bytes, kPeriodBytes);
}

// [B, S, heads, 128] as boxes of `rows` positions, half a head behind the other. Positions past S
// are read as zeros and not written.
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
