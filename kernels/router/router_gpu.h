// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "csrc/core/tensor.h"
#include "kernels/device/split_bf16.h"
#include "kernels/launch.h"
#include "kernels/or_null.h"

// What the kernels of the router share: rows of logits in lanes, and what tensor cores take.
namespace memphis::kernels::cuda::router {

constexpr int kExperts = 8;       // summed together: Grok's number of experts
constexpr int kMaxExperts = 128;  // the contract's
constexpr int kWarps = 4;         // of a block that gives warps tokens
constexpr int kWarpThreads = kWarps * gpu::kWarpSize;

struct Shape {
  std::int64_t B;
  std::int64_t T;
  std::int64_t D;
  std::int64_t S;
  int E;
  int K;
};

__device__ __forceinline__ bool is_valid(const std::uint8_t* valid, std::int64_t t) {
  return valid == nullptr || valid[t] != 0;
}

// A token's values over the experts: kLanes lanes side by side hold those of every kLanes-th expert
// each. A warp has the rows of kRows tokens, which go through a function together.
template <int kLanesOfRow, int kValues>
struct Row {
  static constexpr int kLanes = kLanesOfRow;
  static constexpr int kRows = gpu::kWarpSize / kLanes;
  static constexpr int kCount = kValues;
  float values[kCount];

  static __device__ __forceinline__ int token() { return gpu::lane_id() / kLanes; }
  static __device__ __forceinline__ int lane() { return gpu::lane_id() % kLanes; }
  static __device__ __forceinline__ int expert(int i) { return i * kLanes + lane(); }
};
using ShortRow = Row<kExperts, 1>;
using LongRow = Row<gpu::kWarpSize, kMaxExperts / gpu::kWarpSize>;

template <class R>
__device__ __forceinline__ R load_row(const float* address, int E, float absent) {
  R row;
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    const int e = R::expert(i);
    row.values[i] = e < E ? address[e] : absent;
  }
  return row;
}

template <class R>
__device__ __forceinline__ void store_row(float* address, const R& row, int E) {
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    const int e = R::expert(i);
    if (e < E) {
      address[e] = row.values[i];
    }
  }
}

template <class R>
__device__ __forceinline__ float sum_row(const R& row) {
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    sum += row.values[i];
  }
  return gpu::lanes_sum<R::kLanes>(sum);
}

// Softmax of `row`, whose absent values are -inf, in place; returns its logsumexp. A NaN is lost in
// the maximum and is not in the sum.
template <class R>
__device__ __forceinline__ float softmax(R& row) {
  float largest = -FLT_MAX;
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    largest = fmaxf(largest, row.values[i]);
  }
  largest = gpu::lanes_max<R::kLanes>(largest);
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    row.values[i] = expf(row.values[i] - largest);
  }
  const float sum = sum_row(row);
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    row.values[i] /= sum;
  }
  return largest + logf(sum);
}

inline Launch choose_launch(Dim3 grid, std::int64_t threads, Stream stream) {
  return {.grid = grid, .block = {.x = threads}, .shared_bytes = 0, .stream = stream};
}

inline const std::uint8_t* valid_tokens(const TensorView& valid_T) {
  return or_null<std::uint8_t>(valid_T);
}

// Calls visit<R>() with the shortest row that holds E experts.
template <class Visit>
void visit_row(int E, const Visit& visit) {
  if (E <= ShortRow::kLanes) {
    visit.template operator()<ShortRow>();
  } else {
    visit.template operator()<LongRow>();
  }
}

inline Shape shape_of(const TensorView& x_TD,
                      const TensorView& counts_BE,
                      const TensorView& experts_TK) {
  const std::int64_t B = counts_BE.dim(0);
  return {.B = B,
          .T = x_TD.dim(0),
          .D = x_TD.dim(1),
          .S = B == 0 ? 0 : x_TD.dim(0) / B,
          .E = static_cast<int>(counts_BE.dim(1)),
          .K = static_cast<int>(experts_TK.dim(1))};
}

}  // namespace memphis::kernels::cuda::router
