// SPDX-License-Identifier: Apache-2.0
//
// A warp a token, a vector a lane: bound by the bytes that it moves.
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

// kSums false copies bits.
// grid: ceil(T / kTokensPerBlock), block: kThreads, shared: none; requires H % 8 == 0.
template <class T, bool kSums>
__global__ void gather_heads_kernel(GatherArguments<T> arguments) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kTokensPerBlock + gpu::warp_id();
  if (t >= arguments.num_tokens) {
    return;  // the whole warp
  }
  const std::int64_t source = arguments.source == nullptr ? t : arguments.source[t];
  const T* const x = arguments.x + source * arguments.x_stride;
  T* const y = arguments.y + t * arguments.y_stride;
  constexpr int kVector = gpu::kVectorWidth<T>;
#pragma unroll 4
  for (int column = gpu::lane_id() * kVector; column < arguments.width;
       column += gpu::kWarpSize * kVector) {
    gpu::Vector<T> values = gpu::load_vector(x + column);
    if constexpr (kSums) {
      float total[kVector];
      for (int i = 0; i < kVector; ++i) {
        total[i] = gpu::to_float(values.values[i]);
      }
      for (int p = 1; p < arguments.num_parts; ++p) {
        const gpu::Vector<T> part = gpu::load_vector(x + p * arguments.part_stride + column);
        for (int i = 0; i < kVector; ++i) {
          total[i] += gpu::to_float(part.values[i]);
        }
      }
      for (int i = 0; i < kVector; ++i) {
        values.values[i] = gpu::from_float<T>(total[i]);
      }
    }
    gpu::store_vector(y + column, values);
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
