// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include <gpu_hopper_tma.h>
#include <gpu_launch.h>

#include "csrc/core/tensor.h"
#include "kernels/grouped_matmul/grouped_matmul_hopper_tile.h"
#include "kernels/launch.h"

// How the products of grouped_matmul_hopper_tile.h are launched.
namespace memphis::kernels::cuda::grouped {

constexpr std::int64_t kBf16 = sizeof(bf16);

// [rows, columns], in boxes of 64 columns.
inline TensorMap rows_map(const TensorView& x, std::int64_t box_rows) {
  return make_tensor_map({.data = x.data,
                          .dtype = DType::bf16,
                          .dims = {x.dim(1), x.dim(0)},
                          .stride_bytes = {x.dim(1) * kBf16},
                          .box = {kDepth, box_rows},
                          .swizzle = Swizzle::bytes_128});
}
// [E, N, K], in boxes of 64 of K.
inline TensorMap weight_map(const TensorView& weight, std::int64_t box_rows) {
  return make_tensor_map(
      {.data = weight.data,
       .dtype = DType::bf16,
       .dims = {weight.dim(2), weight.dim(1), weight.dim(0)},
       .stride_bytes = {weight.dim(2) * kBf16, weight.dim(1) * weight.dim(2) * kBf16},
       .box = {kDepth, box_rows, 1},
       .swizzle = Swizzle::bytes_128});
}
inline std::int64_t tiles_across(std::int64_t columns) {
  return ceil_div(columns, kTileColumns);
}
inline std::int64_t clusters_across(std::int64_t columns) {
  return ceil_div(tiles_across(columns), kCluster);
}

// c's rows are the experts'.
inline GroupedArguments over_rows(const TensorView& offsets_E1,
                                  std::int64_t columns,
                                  std::int64_t reduction) {
  return {.offsets_E1 = offsets_E1.as<std::int32_t>(),
          .num_experts = static_cast<int>(offsets_E1.dim(0) - 1),
          .clusters_across = static_cast<int>(clusters_across(columns)),
          .columns = static_cast<int>(columns),
          .weight_rows = 0,
          .write = true,
          .reduction = static_cast<int>(reduction)};
}

inline Rows rows_of(const TensorView& c) {
  return {.data = c.as<bf16>(), .stride = c.dim(1), .columns = static_cast<int>(c.dim(1))};
}
// For halves of all tiles, at most: every expert's last tile down may be a part.
inline std::int64_t max_clusters(std::int64_t R, std::int64_t E, std::int64_t columns) {
  return 2 * (R / kTileRows + std::min(E, R)) * clusters_across(columns);
}

template <class Product>
void launch_product(const typename Product::Arguments& arguments,
                    std::int64_t max_clusters,
                    Stream stream) {
  const std::int64_t clusters =
      std::clamp<std::int64_t>(free_multiprocessors(stream) / kCluster, 1, max_clusters);
  launch(grouped_matmul_hopper_kernel<Product>,
         {.grid = {.x = clusters * kCluster},
          .block = {.x = kThreads},
          .shared_bytes = sizeof(Shared),
          .cluster = kCluster,
          .stream = stream},
         arguments);
}

}  // namespace memphis::kernels::cuda::grouped
