// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/core/dtype.h"
#include "kernels/device/swizzle.h"

namespace memphis::kernels {

// A tensor in device memory as TMA moves it, box by box. Lists run from the innermost dimension,
// whose elements are contiguous, outwards: the order of a copy's coordinates.
struct TiledTensor {
  const void* data;                        // 16-byte aligned
  DType dtype;                             // bf16 | f32
  std::vector<std::int64_t> dims;          // 1 to 5, in elements
  std::vector<std::int64_t> stride_bytes;  // of each dim but the innermost; multiples of 16
  std::vector<std::int64_t> box;           // what one copy moves, in elements, each 1 to 256
  // With one, the box's innermost row is as wide as the swizzle. The API takes narrower rows and
  // does not say how they lie.
  Swizzle swizzle = Swizzle::none;
};

// What cuTensorMapEncodeTiled demands, and what its documentation leaves open. Throws
// ContractError.
void check(const TiledTensor& tensor);

// Bytes that one copy moves, those out of the tensor's bounds included: what an mbarrier expects.
std::size_t box_bytes(const TiledTensor& tensor);

}  // namespace memphis::kernels

// TensorMap make_tensor_map(const TiledTensor&): from the dialect, <gpu_hopper_tma.h>.
