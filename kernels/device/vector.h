// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include <gpu_math.h>

#include "csrc/core/dtype.h"

// Accesses of a thread to memory that are wider than an element.
namespace memphis::kernels::gpu {

// Elements of T in the widest access of a thread, 16 bytes.
template <class T>
constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

// What one instruction loads and stores, at an address that is a multiple of its size; of one
// element at any address.
template <class T, int kCount = kVectorWidth<T>>
struct alignas(kCount * sizeof(T)) Vector {
  T values[kCount];
};

template <int kCount, class T>
__device__ __forceinline__ Vector<T, kCount> load_vector(const T* address) {
  if constexpr (kCount == 1) {
    return {{*address}};
  } else {
    return load_whole(reinterpret_cast<const Vector<T, kCount>*>(address));
  }
}
template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* address) {
  return load_vector<kVectorWidth<T>>(address);
}
template <class T, int kCount>
__device__ __forceinline__ void store_vector(T* address, const Vector<T, kCount>& vector) {
  if constexpr (kCount == 1) {
    *address = vector.values[0];
  } else {
    store_whole(reinterpret_cast<Vector<T, kCount>*>(address), vector);
  }
}

// A vector for threads that keep it, in words; the elements of a Vector<bf16> each have a register of
// their own between the load and the store.
template <class T, int kCount = kVectorWidth<T>>
struct alignas(kCount * sizeof(T)) Packed {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, bf16>);
  static constexpr int kWords = kCount * static_cast<int>(sizeof(T)) / 4;
  std::uint32_t words[kWords];
};

template <int kCount, class T>
__device__ __forceinline__ Packed<T, kCount> load_packed(const T* address) {
  return load_whole(reinterpret_cast<const Packed<T, kCount>*>(address));
}
template <class T>
__device__ __forceinline__ Packed<T> load_packed(const T* address) {
  return load_packed<kVectorWidth<T>>(address);
}
template <class T, int kCount>
__device__ __forceinline__ void store_packed(T* address, const Packed<T, kCount>& packed) {
  store_whole(reinterpret_cast<Packed<T, kCount>*>(address), packed);
}

template <class T, int kCount>
__device__ __forceinline__ void unpack(const Packed<T, kCount>& packed, float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < Packed<T, kCount>::kWords; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      values[i] = std::bit_cast<float>(packed.words[i]);
    } else {
      values[2 * i] = std::bit_cast<float>(packed.words[i] << 16U);
      values[2 * i + 1] = std::bit_cast<float>(packed.words[i] & 0xFFFF0000U);
    }
  }
}
template <class T, int kCount>
__device__ __forceinline__ Packed<T, kCount> pack(const float (&values)[kCount]) {
  Packed<T, kCount> packed;
#pragma unroll
  for (int i = 0; i < Packed<T, kCount>::kWords; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      packed.words[i] = std::bit_cast<std::uint32_t>(values[i]);
    } else {
      packed.words[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
    }
  }
  return packed;
}

// kCount elements of T as floats, and back, in the widest accesses that kCount allows: one element
// (kCount 1) of any address, or vectors of kCount or kVectorWidth elements of aligned ones.
//
// Where a thread has eight f32 one behind the other, each access of a warp touches every sector of
// its addresses and leaves half of it for the next access: no matter where a cache stands between,
// and twice the writes that L2 sees. Four of any type leave no gaps.
template <class T, int kCount>
__device__ __forceinline__ void load_floats(const T* address, float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = to_float(*address);
  } else {
    constexpr int kWidth = kCount < kVectorWidth<T> ? kCount : kVectorWidth<T>;
    static_assert(kCount % kWidth == 0, "whole vectors");
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      float part[kWidth];
      unpack(load_packed<kWidth>(address + first), part);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[first + i] = part[i];
      }
    }
  }
}
template <class T, int kCount>
__device__ __forceinline__ void store_floats(T* address, const float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    *address = from_float<T>(values[0]);
  } else {
    constexpr int kWidth = kCount < kVectorWidth<T> ? kCount : kVectorWidth<T>;
    static_assert(kCount % kWidth == 0, "whole vectors");
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      float part[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        part[i] = values[first + i];
      }
      store_packed(address + first, pack<T>(part));
    }
  }
}

// The same of kPieces pieces that lie `step` elements apart: all loads are under way together.
template <class T, int kPieces, int kCount>
__device__ __forceinline__ void load_pieces(const T* address,
                                            std::int64_t step,
                                            float (&values)[kPieces][kCount]) {
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    load_floats(address + p * step, values[p]);
  }
}
template <class T, int kPieces, int kCount>
__device__ __forceinline__ void store_pieces(T* address,
                                             std::int64_t step,
                                             const float (&values)[kPieces][kCount]) {
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    store_floats(address + p * step, values[p]);
  }
}

}  // namespace memphis::kernels::gpu
