// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include <cuda.h>
#include <cuda_runtime.h>
#include <gpu_hopper_barrier.h>
#include <gpu_hopper_bulk.h>

#include "csrc/core/cuda_check.h"
#include "csrc/core/cuda_driver.h"
#include "csrc/core/error.h"
#include "kernels/device/tensor_map.h"

// Bulk copies of boxes of a tensor by TMA. PTX ISA: "cp.async.bulk.tensor", "Tensors".
namespace memphis::kernels {

// A kernel takes it as a `const __grid_constant__ TensorMap`: TMA reads it where it lies.
using TensorMap = CUtensorMap;

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, which is the same for all GPUs: asked for once, by whichever thread is first.
inline EncodeTiled encode_tiled() {
  static const EncodeTiled encode =
      driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled", 12000);
  return encode;
}

inline TensorMap make_tensor_map(const TiledTensor& tensor) {
  check(tensor);
  std::array<cuuint64_t, 5> dims{};
  std::array<cuuint64_t, 5> strides{};
  std::array<cuuint32_t, 5> box{};
  std::array<cuuint32_t, 5> element_strides{};
  element_strides.fill(1);
  for (std::size_t i = 0; i < tensor.dims.size(); ++i) {
    dims[i] = static_cast<cuuint64_t>(tensor.dims[i]);
    box[i] = static_cast<cuuint32_t>(tensor.box[i]);
  }
  for (std::size_t i = 0; i < tensor.stride_bytes.size(); ++i) {
    strides[i] = static_cast<cuuint64_t>(tensor.stride_bytes[i]);
  }
  constexpr std::array kSwizzles = {CU_TENSOR_MAP_SWIZZLE_NONE,
                                    CU_TENSOR_MAP_SWIZZLE_32B,
                                    CU_TENSOR_MAP_SWIZZLE_64B,
                                    CU_TENSOR_MAP_SWIZZLE_128B};
  TensorMap map;
  const CUresult status =
      encode_tiled()(&map,
                     tensor.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                     static_cast<cuuint32_t>(tensor.dims.size()),
                     const_cast<void*>(tensor.data),
                     dims.data(),
                     strides.data(),
                     box.data(),
                     element_strides.data(),
                     CU_TENSOR_MAP_INTERLEAVE_NONE,
                     kSwizzles[static_cast<std::size_t>(tensor.swizzle)],
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);  // zeros
  require(status == CUDA_SUCCESS,
          "cuTensorMapEncodeTiled returns " + std::to_string(static_cast<int>(status)) +
              " (check() has let an argument pass that the driver refuses); extend check()");
  return map;
}

namespace gpu {

// Launch::shared_bytes, aligned to the period of the widest swizzle.
template <class T>
__device__ __forceinline__ T* dynamic_shared_for_tma() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_bytes_for_tma[];
  return reinterpret_cast<T*>(dynamic_shared_bytes_for_tma);
}

// Fetches the map itself ahead of the first copy that uses it.
__device__ __forceinline__ void tma_prefetch_descriptor(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box whose first element has these coordinates, innermost first, to `shared` (128-byte
// aligned; with a swizzle, to 8 of its rows), one row after the other; zeros where it leaves the
// tensor. The innermost coordinate is at whole 16 bytes: any other is an illegal instruction, which no
// document says (triton-lang/triton issue 7385). One thread calls it. Complete, and box_bytes counted, at
// the barrier's phase: those who have waited for it see the box without a fence.
__device__ __forceinline__ void tma_load(void* shared,
                                         const TensorMap& map,
                                         Mbarrier* barrier,
                                         int c0) {
  asm volatile(
      "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map),
      "r"(shared_address(barrier)),
      "r"(c0)
      : "memory");
}
__device__ __forceinline__ void tma_load(
    void* shared, const TensorMap& map, Mbarrier* barrier, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map),
      "r"(shared_address(barrier)),
      "r"(c0),
      "r"(c1)
      : "memory");
}
__device__ __forceinline__ void tma_load(
    void* shared, const TensorMap& map, Mbarrier* barrier, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map),
      "r"(shared_address(barrier)),
      "r"(c0),
      "r"(c1),
      "r"(c2)
      : "memory");
}
__device__ __forceinline__ void tma_load(
    void* shared, const TensorMap& map, Mbarrier* barrier, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map),
      "r"(shared_address(barrier)),
      "r"(c0),
      "r"(c1),
      "r"(c2),
      "r"(c3)
      : "memory");
}
__device__ __forceinline__ void tma_load(
    void* shared, const TensorMap& map, Mbarrier* barrier, int c0, int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map),
      "r"(shared_address(barrier)),
      "r"(c0),
      "r"(c1),
      "r"(c2),
      "r"(c3),
      "r"(c4)
      : "memory");
}

// The box from `shared` to the tensor; what goes beyond the tensor's end is dropped. No coordinate
// is negative (CUDA programming guide: only boxes that are read may begin before the tensor), and the
// innermost is at whole 16 bytes (tile-ai/tilelang issue 2527: an illegal instruction else). The
// threads that wrote the box have called fence_proxy_async before a barrier. One thread calls this,
// commits and waits (gpu_hopper_bulk.h).
__device__ __forceinline__ void tma_store(const TensorMap& map, const void* shared, int c0) {
  asm volatile(
      "cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%0, {%2}], [%1];" ::"l"(&map),
      "r"(shared_address(shared)),
      "r"(c0)
      : "memory");
}
__device__ __forceinline__ void tma_store(const TensorMap& map,
                                          const void* shared,
                                          int c0,
                                          int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
      "r"(shared_address(shared)),
      "r"(c0),
      "r"(c1)
      : "memory");
}
__device__ __forceinline__ void tma_store(
    const TensorMap& map, const void* shared, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(shared_address(shared)),
      "r"(c0),
      "r"(c1),
      "r"(c2)
      : "memory");
}
__device__ __forceinline__ void tma_store(
    const TensorMap& map, const void* shared, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
          &map),
      "r"(shared_address(shared)),
      "r"(c0),
      "r"(c1),
      "r"(c2),
      "r"(c3)
      : "memory");
}
__device__ __forceinline__ void tma_store(
    const TensorMap& map, const void* shared, int c0, int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::
          "l"(&map),
      "r"(shared_address(shared)),
      "r"(c0),
      "r"(c1),
      "r"(c2),
      "r"(c3),
      "r"(c4)
      : "memory");
}
// The box of f32 added to the tensor's elements, each by itself: what several threads add to one
// element has no order but that of their waits. Subnormal numbers, before and after, are zeros of
// their sign. Otherwise as tma_store.
__device__ __forceinline__ void tma_reduce_add(const TensorMap& map, const void* shared, int c0) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.bulk_group [%0, {%2}], [%1];" ::"l"(
          &map),
      "r"(shared_address(shared)),
      "r"(c0)
      : "memory");
}
__device__ __forceinline__ void tma_reduce_add(const TensorMap& map,
                                               const void* shared,
                                               int c0,
                                               int c1) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%2, %3}], [%1];" ::
          "l"(&map),
      "r"(shared_address(shared)),
      "r"(c0),
      "r"(c1)
      : "memory");
}
__device__ __forceinline__ void tma_reduce_add(
    const TensorMap& map, const void* shared, int c0, int c1, int c2) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], "
      "[%1];" ::"l"(&map),
      "r"(shared_address(shared)),
      "r"(c0),
      "r"(c1),
      "r"(c2)
      : "memory");
}
__device__ __forceinline__ void tma_reduce_add(
    const TensorMap& map, const void* shared, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4, %5}], "
      "[%1];" ::"l"(&map),
      "r"(shared_address(shared)),
      "r"(c0),
      "r"(c1),
      "r"(c2),
      "r"(c3)
      : "memory");
}
__device__ __forceinline__ void tma_reduce_add(
    const TensorMap& map, const void* shared, int c0, int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4, %5, "
      "%6}], [%1];" ::"l"(&map),
      "r"(shared_address(shared)),
      "r"(c0),
      "r"(c1),
      "r"(c2),
      "r"(c3),
      "r"(c4)
      : "memory");
}

}  // namespace gpu
}  // namespace memphis::kernels
