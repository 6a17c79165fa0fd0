// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/tensor_map.h"

namespace memphis::kernels::simt {

TensorMap encode(const TiledTensor& tensor) {
  check(tensor);
  TensorMap map{};
  map.magic = TensorMap::kMagic;
  map.num_dims = static_cast<std::uint8_t>(tensor.dims.size());
  map.element_bytes = static_cast<std::uint8_t>(size_of(tensor.dtype));
  map.swizzle = tensor.swizzle;
  map.box_bytes = static_cast<std::uint32_t>(box_bytes(tensor));
  map.data = reinterpret_cast<std::uintptr_t>(tensor.data);
  map.dims.fill(1);
  map.box.fill(1);
  std::copy(tensor.dims.begin(), tensor.dims.end(), map.dims.begin());
  std::copy(tensor.stride_bytes.begin(), tensor.stride_bytes.end(), map.stride_bytes.begin());
  std::transform(tensor.box.begin(), tensor.box.end(), map.box.begin(), [](std::int64_t side) {
    return static_cast<std::uint16_t>(side);
  });
  return map;
}

TensorMap contiguous(const void* data, std::uint32_t bytes) {
  TensorMap map{};
  map.magic = TensorMap::kMagic;
  map.num_dims = 1;
  map.element_bytes = kChunkBytes;
  map.box_bytes = bytes;
  map.data = reinterpret_cast<std::uintptr_t>(data);
  map.dims.fill(1);
  map.box.fill(1);
  map.dims[0] = bytes / kChunkBytes;
  map.box[0] = static_cast<std::uint16_t>(bytes / kChunkBytes);
  return map;
}

}  // namespace memphis::kernels::simt
