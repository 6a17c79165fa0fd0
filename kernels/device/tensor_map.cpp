// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/tensor_map.h"

#include <string>

#include "csrc/core/error.h"

namespace memphis::kernels {
namespace {

constexpr std::int64_t kAlignment = 16;

std::string dim_name(std::size_t dim) {
  return "dim " + std::to_string(dim) + (dim == 0 ? " (the innermost)" : "");
}

}  // namespace

void check(const TiledTensor& tensor) {
  constexpr std::size_t kMaxNumDims = 5;
  constexpr std::int64_t kMaxDim = std::int64_t{1} << 32;
  constexpr std::int64_t kMaxStride = std::int64_t{1} << 40;
  constexpr std::int64_t kMaxBox = 256;

  require(tensor.dtype == DType::bf16 || tensor.dtype == DType::f32,
          "a tensor map of dtype " + std::string(name_of(tensor.dtype)) +
              " (kernels copy two types by TMA); use bf16 or f32");
  const std::size_t num_dims = tensor.dims.size();
  require(num_dims >= 1 && num_dims <= kMaxNumDims,
          "a tensor map of " + std::to_string(num_dims) +
              " dims (TMA counts in 1 to 5 coordinates); merge or split dims");
  require(tensor.stride_bytes.size() + 1 == num_dims && tensor.box.size() == num_dims,
          "a tensor map of " + std::to_string(num_dims) + " dims with " +
              std::to_string(tensor.stride_bytes.size()) + " strides and " +
              std::to_string(tensor.box.size()) +
              " sides of the box (the innermost dim has no stride, and each has a side); give "
              "one less, and as many");
  require(reinterpret_cast<std::uintptr_t>(tensor.data) % kAlignment == 0,
          "a tensor map of data that is not 16-byte aligned (TMA reads whole 16 bytes); align it");
  for (std::size_t i = 0; i < num_dims; ++i) {
    require(tensor.dims[i] >= 1 && tensor.dims[i] <= kMaxDim,
            "a tensor map with " + std::to_string(tensor.dims[i]) + " elements in " + dim_name(i) +
                " (TMA takes 1 to 2^32); launch nothing for an empty tensor");
    require(tensor.box[i] >= 1 && tensor.box[i] <= kMaxBox,
            "a tensor map with a box of " + std::to_string(tensor.box[i]) + " elements in " +
                dim_name(i) + " (TMA takes 1 to 256); copy several boxes");
  }
  for (std::size_t i = 0; i + 1 < num_dims; ++i) {
    const std::int64_t stride = tensor.stride_bytes[i];
    require(stride >= 0 && stride < kMaxStride && stride % kAlignment == 0,
            "a tensor map with a stride of " + std::to_string(stride) + " bytes in " +
                dim_name(i + 1) + " (TMA takes multiples of 16 below 2^40); pad the rows");
  }
  const std::int64_t row = tensor.box[0] * static_cast<std::int64_t>(size_of(tensor.dtype));
  require(row % kAlignment == 0,
          "a tensor map with a box of " + std::to_string(row) +
              " bytes in the innermost dim (TMA copies multiples of 16); widen the box");
  require(tensor.swizzle == Swizzle::none || row == swizzle_bytes(tensor.swizzle),
          "a tensor map with a box of " + std::to_string(row) +
              " bytes in the innermost dim under a swizzle of " +
              std::to_string(swizzle_bytes(tensor.swizzle)) +
              " (a row fills the swizzle's span and no more); make them equal");
}

std::size_t box_bytes(const TiledTensor& tensor) {
  std::size_t bytes = size_of(tensor.dtype);
  for (const std::int64_t side : tensor.box) {
    bytes *= static_cast<std::size_t>(side);
  }
  return bytes;
}

}  // namespace memphis::kernels
