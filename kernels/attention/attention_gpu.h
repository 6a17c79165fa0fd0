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

// Heads of tokens, of the first head of the first token on.
template <class T>
struct HeadRows {
  T* data;
  std::int64_t stride;  // from token to token
};

// A pass leaves the pointers null that it does not use.
template <class T>
struct AttentionArguments {
  T* out;
  float* lse;
  HeadRows<const T> query;
  HeadRows<const T> key;
  HeadRows<const T> value;
  const std::int32_t* position;
  const std::int32_t* place;      // null: t
  const std::int32_t* key_place;  // null: s
  const std::uint8_t* key_valid;  // null: every key is valid
  HeadRows<T> dquery;
  HeadRows<T> dkey;
  HeadRows<T> dvalue;
  const T* dout;
  float* delta;
  AttentionShape shape;
  float sequence_keys;  // that a mean of values is over
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

// tau of a query at this position of its document.
template <class T>
__device__ __forceinline__ float temperature_at(const AttentionArguments<T>& arguments,
                                                int position) {
  const auto p = static_cast<float>(position);
  return arguments.temperature_len > 0.0F && p > arguments.temperature_len
             ? log2f(p) / arguments.log2_temperature_len
             : 1.0F;
}

// One sequence of the call, seen by query head n.
template <class T>
struct AttentionHead {
  const AttentionArguments<T>& arguments;
  int b;
  int n;

  __device__ int num_tokens() const { return static_cast<int>(arguments.shape.S); }
  __device__ int num_keys() const { return static_cast<int>(arguments.shape.num_keys); }
  __device__ int width() const { return static_cast<int>(arguments.shape.H); }
  __device__ std::int64_t token(int t) const { return b * arguments.shape.S + t; }
  __device__ std::int64_t key_token(int s) const { return b * arguments.shape.num_keys + s; }
  // n / group(), by one division of 32 bits: one of 64 is a call of a subroutine.
  __device__ std::int64_t kv_head() const {
    return n * static_cast<int>(arguments.shape.G) / static_cast<int>(arguments.shape.N);
  }

  // This head of the sequence's tokens, of queries and of keys.
  template <class U>
  __device__ HeadRows<U> of_queries(const HeadRows<U>& rows) const {
    return {rows.data + token(0) * rows.stride + n * arguments.shape.H, rows.stride};
  }
  template <class U>
  __device__ HeadRows<U> of_keys(const HeadRows<U>& rows) const {
    return {rows.data + key_token(0) * rows.stride + kv_head() * arguments.shape.H, rows.stride};
  }
  // Of [T, N, H], which out and dout are.
  template <class U>
  __device__ HeadRows<U> of_outputs(U* data) const {
    return {data + output(0), arguments.shape.N * arguments.shape.H};
  }
  __device__ std::int64_t output(int t) const {
    return (token(t) * arguments.shape.N + n) * arguments.shape.H;
  }
  __device__ std::int64_t statistic(int t) const {
    return (b * arguments.shape.N + n) * arguments.shape.S + t;
  }

  __device__ int place(int t) const {
    return arguments.place == nullptr ? t : arguments.place[token(t)];
  }
  __device__ int key_place(int s) const {
    return arguments.key_place == nullptr ? s : arguments.key_place[key_token(s)];
  }
  // How many keys lie before a place: as places ascend, the first that does not.
  __device__ int keys_before(int at) const {
    if (arguments.key_place == nullptr) {
      return at < 0 ? 0 : (at < num_keys() ? at : num_keys());
    }
    return first_of(0, num_keys(), [&](int s) { return key_place(s) >= at; });
  }
  // The keys that query t may see lie from the first one of these to the other; there are none if
  // the other is less. Neither decreases with t: positions count within documents. A document that
  // began before all keys is cut there.
  __device__ int first_key(int t) const {
    return keys_before(place(t) - arguments.position[token(t)]);
  }
  __device__ int last_key(int t) const { return keys_before(place(t) + 1) - 1; }
  __device__ bool key_valid(int s) const {
    return arguments.key_valid == nullptr || arguments.key_valid[key_token(s)] != 0;
  }
  __device__ float temperature(int t) const {
    return temperature_at(arguments, arguments.position[token(t)]);
  }
  // The first query that may see key s, and one past the last.
  __device__ int first_query(int s) const {
    const int at = key_place(s);
    return arguments.place == nullptr
               ? (at < 0 ? 0 : (at < num_tokens() ? at : num_tokens()))
               : first_of(0, num_tokens(), [&](int t) { return place(t) >= at; });
  }
  __device__ int end_query(int s) const {
    const int at = key_place(s);
    return first_of(first_query(s), num_tokens(), [&](int t) {
      return place(t) - arguments.position[token(t)] > at;
    });
  }

 private:
  // The first of [low, high) that has a property which all after it have; `high` if none has.
  template <class Has>
  __device__ static int first_of(int low, int high, const Has& has) {
    while (low < high) {
      const int middle = (low + high) / 2;
      if (has(middle)) {
        high = middle;
      } else {
        low = middle + 1;
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

// Rows [first, first + kRows) of one head, zeros from row `end` and from column `width` on.
// Asynchronous: a commit and a wait make it visible to this thread, a barrier then to the block.
template <class T, int kWidth, int kRows>
__device__ __forceinline__ void load_tile_async(
    T* tile, const HeadRows<const T>& head, int first, int end, int width) {
  constexpr int kVector = gpu::kVectorWidth<T>;
  constexpr int kVectorsPerRow = kWidth / kVector;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kVectorsPerRow;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / kVectorsPerRow;
    const int column = i % kVectorsPerRow * kVector;
    const bool valid = first + row < end && column < width;
    gpu::copy_async_16(tile + row * kRowStride<T, kWidth> + column,
                       valid ? head.data + (first + row) * head.stride + column : head.data,
                       valid);
  }
}

}  // namespace memphis::kernels::cuda
