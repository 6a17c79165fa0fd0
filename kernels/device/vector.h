// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gpu_math.h>

#include "csrc/core/dtype.h"

// The widest accesses of a thread to memory, 16 bytes.
namespace memphis::kernels::gpu {

// Elements of T in the widest access of a thread, 16 bytes.
template <class T>
constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

// 16 bytes of T, loaded and stored by one instruction. Addresses are 16-byte aligned.
template <class T>
struct alignas(16) Vector {
  T values[kVectorWidth<T>];
};

template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* address) {
  return *reinterpret_cast<const Vector<T>*>(address);
}
template <class T>
__device__ __forceinline__ void store_vector(T* address, const Vector<T>& vector) {
  *reinterpret_cast<Vector<T>*>(address) = vector;
}

// kCount elements of T as floats, and back, in the widest accesses that kCount allows: whole
// vectors of aligned addresses, or one element (kCount 1) of any address.
template <class T, int kCount>
__device__ __forceinline__ void load_floats(const T* address, float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = to_float(*address);
  } else {
    constexpr int kWidth = kVectorWidth<T>;
    static_assert(kCount % kWidth == 0, "whole vectors");
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      const Vector<T> vector = load_vector(address + first);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[first + i] = to_float(vector.values[i]);
      }
    }
  }
}
template <class T, int kCount>
__device__ __forceinline__ void store_floats(T* address, const float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    *address = from_float<T>(values[0]);
  } else {
    constexpr int kWidth = kVectorWidth<T>;
    static_assert(kCount % kWidth == 0, "whole vectors");
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      Vector<T> vector;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        vector.values[i] = from_float<T>(values[first + i]);
      }
      store_vector(address + first, vector);
    }
  }
}

}  // namespace memphis::kernels::gpu
