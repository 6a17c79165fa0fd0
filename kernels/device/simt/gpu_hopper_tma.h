// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <gpu_hopper_barrier.h>
#include <gpu_hopper_bulk.h>

#include "kernels/device/simt/hopper.h"
#include "kernels/device/simt/words.h"
#include "kernels/device/tensor_map.h"

// Bulk copies of boxes of a tensor by TMA. The counterpart of device/cuda/gpu_hopper_tma.h, which
// says what each function promises.
namespace memphis::kernels {

using TensorMap = simt::TensorMap;

inline TensorMap make_tensor_map(const TiledTensor& tensor) {
  return simt::encode(tensor);
}

namespace gpu {

template <class T>
__forceinline__ T* dynamic_shared_for_tma() {
  return static_cast<T*>(simt::dynamic_shared());
}

template <class... Int>
__forceinline__ void tma_load(void* shared,
                              const TensorMap& map,
                              Mbarrier* barrier,
                              Int... coordinates) {
  simt::tma_load(shared, map, barrier, {coordinates...}, static_cast<int>(sizeof...(Int)));
}

__forceinline__ void tma_prefetch_descriptor(const TensorMap& map) {
  simt::tma_prefetch(map);
}

template <class... Int>
__forceinline__ void tma_store(const TensorMap& map, const void* shared, Int... coordinates) {
  simt::tma_store(
      map, shared, {coordinates...}, static_cast<int>(sizeof...(Int)), simt::Combine::replace);
}
template <class... Int>
__forceinline__ void tma_reduce_add(const TensorMap& map, const void* shared, Int... coordinates) {
  simt::tma_store(
      map, shared, {coordinates...}, static_cast<int>(sizeof...(Int)), simt::Combine::add_floats);
}

}  // namespace gpu
}  // namespace memphis::kernels
