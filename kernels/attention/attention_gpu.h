// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/attention/attention_shape.h"

// What the kernels of attention share: their arguments, the mask, the loading of a tile.
namespace memphis::kernels::cuda {

constexpr float kLog2E = 1.44269504088896341F;
constexpr float kLn2 = 0.69314718055994531F;

// A pass leaves the pointers null that it does not use.
template <class T>
struct AttentionArguments {
  T* out;
  float* lse;
  const T* qkv;
  const std::int32_t* position;
  const std::uint8_t* key_valid;  // null: every key is valid
  T* dqkv;
  const T* dout;
  float* delta;
  AttentionShape shape;
  float scale;
  float cap;
  float temperature_len;
  float log2_temperature_len;
};

// The bf16 kernels, attention_bf16_*.cu, and the f32 ones, attention_f32.cu. The backward pass
// finds delta computed.
void launch_attention_forward(const AttentionArguments<bf16>& arguments, Stream stream);
void launch_attention_forward(const AttentionArguments<float>& arguments, Stream stream);
void launch_attention_backward(const AttentionArguments<bf16>& arguments, Stream stream);
void launch_attention_backward(const AttentionArguments<float>& arguments, Stream stream);

// Calls visitor.operator()<kWidth>() with the narrowest compiled width that holds a head: the rest
// is filled with zeros, which add nothing to any product.
template <class Visitor>
void visit_head_width(std::int64_t width, Visitor&& visitor) {
  if (width <= 32) {
    visitor.template operator()<32>();
  } else if (width <= 64) {
    visitor.template operator()<64>();
  } else {
    visitor.template operator()<128>();
  }
}

// One sequence of the call, seen by query head n.
template <class T>
struct AttentionHead {
  const AttentionArguments<T>& arguments;
  int b;
  int n;

  __device__ int num_tokens() const { return static_cast<int>(arguments.shape.S); }
  __device__ int num_keys() const { return num_tokens(); }
  __device__ int width() const { return static_cast<int>(arguments.shape.H); }
  __device__ std::int64_t token(int t) const { return b * arguments.shape.S + t; }
  __device__ std::int64_t kv_head() const { return n / arguments.shape.group(); }

  __device__ const T* query() const {
    return arguments.qkv + token(0) * arguments.shape.token_stride() + n * arguments.shape.H;
  }
  __device__ const T* key() const {
    return arguments.qkv + token(0) * arguments.shape.token_stride() +
           arguments.shape.key_offset(kv_head());
  }
  __device__ const T* value() const {
    return arguments.qkv + token(0) * arguments.shape.token_stride() +
           arguments.shape.value_offset(kv_head());
  }
  __device__ std::int64_t output(int t) const {
    return (token(t) * arguments.shape.N + n) * arguments.shape.H;
  }
  __device__ std::int64_t output_stride() const { return arguments.shape.N * arguments.shape.H; }
  __device__ std::int64_t statistic(int t) const {
    return (b * arguments.shape.N + n) * arguments.shape.S + t;
  }

  // The oldest key that query t may see. It does not decrease with t: positions count within
  // documents. A document that began before this sequence is cut at the sequence's start.
  __device__ int first_key(int t) const {
    const int first = t - arguments.position[token(t)];
    return first > 0 ? first : 0;
  }
  // The newest key that query t may see: itself.
  __device__ int last_key(int t) const { return t; }
  __device__ bool key_valid(int s) const {
    return arguments.key_valid == nullptr || arguments.key_valid[token(s)] != 0;
  }
  __device__ float temperature(int t) const {
    const auto p = static_cast<float>(arguments.position[token(t)]);
    return arguments.temperature_len > 0.0F && p > arguments.temperature_len
               ? log2f(p) / arguments.log2_temperature_len
               : 1.0F;
  }
  // One past the last query that may see key s.
  __device__ int end_query(int s) const {
    int low = s;
    int high = num_tokens();
    while (low < high) {
      const int middle = (low + high) / 2;
      if (first_key(middle) <= s) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// The sum (maximum) over the four lanes that hold one row of scores, neighbours in every kernel.
__device__ __forceinline__ float row_sum(float value) {
  value += gpu::shuffle_xor(value, 1);
  return value + gpu::shuffle_xor(value, 2);
}
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, gpu::shuffle_xor(value, 1));
  return fmaxf(value, gpu::shuffle_xor(value, 2));
}

// From a row of a tile in shared memory to the next: 16 bytes more than the power of two, so that
// the same columns of eight rows lie in different banks.
template <class T, int kWidth>
constexpr int kRowStride = kWidth + gpu::kVectorWidth<T>;

// Rows [first, first + kRows) of one head, `stride` elements apart, zeros from row `end` and from
// column `width` on. Asynchronous: a commit and a wait make it visible to this thread, a barrier
// then to the block.
template <class T, int kWidth, int kRows>
__device__ __forceinline__ void load_tile_async(
    T* tile, const T* head, std::int64_t stride, int first, int end, int width) {
  constexpr int kVector = gpu::kVectorWidth<T>;
  constexpr int kVectorsPerRow = kWidth / kVector;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kVectorsPerRow;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / kVectorsPerRow;
    const int column = i % kVectorsPerRow * kVector;
    const bool valid = first + row < end && column < width;
    gpu::copy_async_16(tile + row * kRowStride<T, kWidth> + column,
                       valid ? head + (first + row) * stride + column : head,
                       valid);
  }
}

}  // namespace memphis::kernels::cuda
