// SPDX-License-Identifier: Apache-2.0
//
// A warp a token, a vector a lane: bound by the bytes that it moves, of which a lane loads four
// vectors at once, of as many parts or columns.
#include "kernels/attention/gather_heads.h"

#include <cstdint>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/or_null.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokensPerBlock = kThreads / gpu::kWarpSize;
constexpr int kBlocks = 5;  // on an SM: 48 registers, and 80 KiB on their way
constexpr int kAtOnce = 4;

template <class T>
struct GatherArguments {
  T* y;
  const T* x;
  const std::int32_t* source;  // null: t
  std::int64_t num_tokens;
  std::int64_t y_stride;  // from token to token
  std::int64_t x_stride;
  std::int64_t part_stride;  // from part to part
  int num_parts;
  int width;  // of all heads
};

// Calls take(i, load(i)) for i in [0, count), in this order, but kAtOnce loads before the first of
// these is taken.
template <class Load, class Take>
__device__ __forceinline__ void for_each_at_once(int count, const Load& load, const Take& take) {
  for (int first = 0; first < count; first += kAtOnce) {
    decltype(load(0)) loaded[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i < count) {
        loaded[i] = load(first + i);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i < count) {
        take(first + i, loaded[i]);
      }
    }
  }
}

// kSums false copies bits, as the only part.
// grid: ceil(T / kTokensPerBlock), block: kThreads, shared: none; requires H % 8 == 0.
template <class T, bool kSums>
__global__ void __launch_bounds__(kThreads, kBlocks)
    gather_heads_kernel(GatherArguments<T> arguments) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kTokensPerBlock + gpu::warp_id();
  if (t >= arguments.num_tokens) {
    return;  // the whole warp
  }
  const std::int64_t source = arguments.source == nullptr ? t : arguments.source[t];
  const T* const x = arguments.x + source * arguments.x_stride;
  T* const y = arguments.y + t * arguments.y_stride;
  constexpr int kVector = gpu::kVectorWidth<T>;
  constexpr int kTurn = gpu::kWarpSize * kVector;
  const int first_column = gpu::lane_id() * kVector;
  if constexpr (kSums) {
    for (int column = first_column; column < arguments.width; column += kTurn) {
      float total[kVector] = {};
      for_each_at_once(
          arguments.num_parts,
          [&](int p) { return gpu::load_packed(x + p * arguments.part_stride + column); },
          [&](int /*p*/, const gpu::Packed<T>& part) {
            float values[kVector];
            gpu::unpack<T>(part, values);
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
              total[i] += values[i];
            }
          });
      gpu::store_packed(y + column, gpu::pack<T>(total));
    }
  } else {
    for_each_at_once((arguments.width - first_column + kTurn - 1) / kTurn,
                     [&](int i) { return gpu::load_packed(x + first_column + i * kTurn); },
                     [&](int i, const gpu::Packed<T>& values) {
                       gpu::store_packed(y + first_column + i * kTurn, values);
                     });
  }
}

}  // namespace

void gather_heads(const GatherHeads& op, Stream stream) {
  visit_gpu_float(op.y_TCH.dtype(), [&]<class T>() {
    const std::int64_t num_tokens = op.y_TCH.num_tokens();
    const GatherArguments<T> arguments{
        .y = op.y_TCH.as<T>(),
        .x = op.x_UCH.as<T>(),
        .source = or_null<std::int32_t>(op.source_T),
        .num_tokens = num_tokens,
        .y_stride = op.y_TCH.token_stride(),
        .x_stride = op.x_UCH.token_stride(),
        .part_stride = op.x_UCH.num_tokens() / op.num_parts * op.x_UCH.token_stride(),
        .num_parts = static_cast<int>(op.num_parts),
        .width = static_cast<int>(op.y_TCH.num_heads * op.y_TCH.width())};
    const Launch how{.grid = {.x = ceil_div(num_tokens, kTokensPerBlock)},
                     .block = {.x = kThreads},
                     .stream = stream};
    if (op.num_parts > 1) {
      launch(gather_heads_kernel<T, true>, how, arguments);
    } else {
      launch(gather_heads_kernel<T, false>, how, arguments);
    }
  });
}

}  // namespace memphis::kernels::cuda
