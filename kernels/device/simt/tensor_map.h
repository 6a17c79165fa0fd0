// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/device/tensor_map.h"

namespace memphis::kernels::simt {

constexpr int kMaxTensorMapDims = 5;

using Coordinates = std::array<std::int32_t, kMaxTensorMapDims>;  // innermost first, the rest zero

// What stands for CUtensorMap: its size and alignment, and fields of our own. Dims beyond num_dims
// are 1.
struct alignas(64) TensorMap {
  std::uint32_t magic;
  std::uint8_t num_dims;
  std::uint8_t element_bytes;
  Swizzle swizzle;
  std::uint32_t box_bytes;
  std::uintptr_t data;
  std::array<std::int64_t, kMaxTensorMapDims> dims;
  std::array<std::int64_t, kMaxTensorMapDims - 1> stride_bytes;
  std::array<std::uint16_t, kMaxTensorMapDims> box;

  static constexpr std::uint32_t kMagic = 0x54'4D'41'50;
};
static_assert(sizeof(TensorMap) == 128 && alignof(TensorMap) == 64, "as CUtensorMap");

TensorMap encode(const TiledTensor& tensor);

// What a bulk copy without a map moves: `bytes` from `data` on, as one box.
TensorMap contiguous(const void* data, std::uint32_t bytes);

// A chunk of a box. Of its bytes [first, last) lie in the tensor, from `global` + first on.
struct BoxChunk {
  std::uint32_t offset;  // in the box, before the swizzle
  std::uintptr_t global;
  std::size_t first;
  std::size_t last;
};

// Calls body(BoxChunk) for each chunk of the box at `corner`, in their order in shared memory.
template <class Body>
void for_each_chunk(const TensorMap& map, const Coordinates& corner, const Body& body) {
  const std::int64_t element = map.element_bytes;
  const std::int64_t row_bytes = map.box[0] * element;
  const std::int64_t num_rows = map.box_bytes / row_bytes;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    std::int64_t rest = row;
    std::int64_t row_offset = 0;
    bool inside = true;
    for (std::size_t dim = 1; dim < kMaxTensorMapDims; ++dim) {
      const std::int64_t at = corner[dim] + rest % map.box[dim];
      rest /= map.box[dim];
      inside = inside && at >= 0 && at < map.dims[dim];
      row_offset += at * map.stride_bytes[dim - 1];
    }
    for (std::int64_t byte = 0; byte < row_bytes; byte += kChunkBytes) {
      const std::int64_t at = corner[0] * element + byte;
      const auto clamp = [&](std::int64_t bound) {
        return static_cast<std::size_t>(
            inside ? std::clamp<std::int64_t>(bound - at, 0, kChunkBytes) : 0);
      };
      body(BoxChunk{.offset = static_cast<std::uint32_t>(row * row_bytes + byte),
                    .global = map.data + static_cast<std::uintptr_t>(row_offset + at),
                    .first = clamp(0),
                    .last = clamp(map.dims[0] * element)});
    }
  }
}

}  // namespace memphis::kernels::simt
