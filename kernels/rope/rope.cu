// SPDX-License-Identifier: Apache-2.0
//
// A block a token; a thread turns a run of pairs (j, j + H/2) of a head. The token's row of the
// table is read once from memory and then from the L1 cache. Bound by bytes: 3 operations an
// element.
#include "kernels/rope/rope.h"

#include <algorithm>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

constexpr std::int64_t kMaxThreads = 256;

// kSign is 1 for the rotation and -1 for its inverse.
// grid: T tokens, block: whole warps, shared: none; requires H / 2 % kWidth == 0 for a kWidth of
// whole vectors, or a kWidth of 1.
template <class T, int kWidth, int kSign>
__global__ void rope_kernel(T* x_TCH,
                            const float* table_SH,
                            const std::int32_t* position_T,
                            int num_heads,
                            int num_rotated_heads,
                            int width) {
  const auto token = static_cast<std::int64_t>(blockIdx.x);
  const int half = width / 2;
  const int runs_per_head = half / kWidth;
  const float* const row = table_SH + static_cast<std::int64_t>(position_T[token]) * width;
  for (int i = static_cast<int>(threadIdx.x); i < num_rotated_heads * runs_per_head;
       i += static_cast<int>(blockDim.x)) {
    const int j = i % runs_per_head * kWidth;
    T* const x1 = x_TCH + (token * num_heads + i / runs_per_head) * width + j;
    T* const x2 = x1 + half;
    float first[kWidth];
    float second[kWidth];
    float angle[2 * kWidth];
    gpu::load_floats(x1, first);
    gpu::load_floats(x2, second);
    if constexpr (kWidth == 1) {
      angle[0] = row[2 * j];
      angle[1] = row[2 * j + 1];
    } else {
      gpu::load_floats(row + 2 * j, angle);
    }
    for (int k = 0; k < kWidth; ++k) {
      const float cosine = angle[2 * k];
      const float sine = static_cast<float>(kSign) * angle[2 * k + 1];
      const float x = first[k];
      first[k] = x * cosine - second[k] * sine;
      second[k] = second[k] * cosine + x * sine;
    }
    gpu::store_floats(x1, first);
    gpu::store_floats(x2, second);
  }
}

template <int kSign>
void rotate(const TensorView& x_TCH,
            const TensorView& table_SH,
            const TensorView& position_T,
            std::int64_t num_rotated_heads,
            Stream stream) {
  if (num_rotated_heads == 0 || x_TCH.num_elements() == 0) {
    return;
  }
  const std::int64_t width = x_TCH.dim(2);
  visit_gpu_float(x_TCH.dtype, [&]<class T>() {
    const auto launch_runs = [&]<int kWidth>() {
      const std::int64_t num_runs = num_rotated_heads * (width / 2 / kWidth);
      launch(rope_kernel<T, kWidth, kSign>,
             {.grid = {.x = x_TCH.dim(0)},
              .block = {.x = std::min(ceil_div(num_runs, gpu::kWarpSize) * gpu::kWarpSize,
                                      kMaxThreads)},
              .stream = stream},
             x_TCH.as<T>(),
             table_SH.as<float>(),
             position_T.as<std::int32_t>(),
             x_TCH.dim(1),
             num_rotated_heads,
             width);
    };
    if (width / 2 % gpu::kVectorWidth<T> == 0) {
      launch_runs.template operator()<gpu::kVectorWidth<T>>();
    } else {
      launch_runs.template operator()<1>();
    }
  });
}

}  // namespace

void rope_forward(const RopeForward& op, Stream stream) {
  rotate<1>(op.x_TCH, op.table_SH, op.position_T, op.num_rotated_heads, stream);
}

void rope_backward(const RopeBackward& op, Stream stream) {
  rotate<-1>(op.dx_TCH, op.table_SH, op.position_T, op.num_rotated_heads, stream);
}

}  // namespace memphis::kernels::cuda
