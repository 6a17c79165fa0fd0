// SPDX-License-Identifier: Apache-2.0
//
// A warp a row of H elements of the result, a vector a lane: bound by the bytes of the parts.
#include "kernels/attention/attention_merge.h"

#include <cmath>
#include <cstdint>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / gpu::kWarpSize;

template <class T>
struct MergeArguments {
  T* out;
  float* lse;
  const T* part_out;
  const float* part_lse;
  const std::int32_t* num_keys;
  int P;
  std::int64_t rows;  // T * N
  std::int64_t N;
  std::int64_t S;
  std::int64_t H;
};

// grid: ceil(T * N / kRowsPerBlock), block: kThreads, shared: none; requires H % 8 == 0.
template <class T>
__global__ void attention_merge_kernel(MergeArguments<T> arguments) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock + gpu::warp_id();
  if (row >= arguments.rows) {
    return;  // the whole warp
  }
  const std::int64_t t = row / arguments.N;
  const std::int64_t statistic =
      (t / arguments.S * arguments.N + row % arguments.N) * arguments.S + t % arguments.S;
  const float* const part_lse = arguments.part_lse + statistic;

  // Weights are relative to the largest part. All lanes read the same few values.
  float maximum = -INFINITY;
  for (int p = 0; p < arguments.P; ++p) {
    maximum = fmaxf(maximum, part_lse[p * arguments.rows]);
  }
  const auto weight = [&](int p) {
    return maximum == -INFINITY ? static_cast<float>(arguments.num_keys[p])
                                : expf(part_lse[p * arguments.rows] - maximum);
  };
  float sum = 0.0F;
  for (int p = 0; p < arguments.P; ++p) {
    sum += weight(p);
  }
  const float inverse = sum > 0.0F ? 1.0F / sum : 0.0F;

  constexpr int kVector = gpu::kVectorWidth<T>;
  for (std::int64_t column = gpu::lane_id() * kVector; column < arguments.H;
       column += gpu::kWarpSize * kVector) {
    float total[kVector] = {};
    for (int p = 0; p < arguments.P; ++p) {
      const gpu::Vector<T> part =
          gpu::load_vector(arguments.part_out + (p * arguments.rows + row) * arguments.H + column);
      const float factor = weight(p);
      for (int i = 0; i < kVector; ++i) {
        total[i] += factor * gpu::to_float(part.values[i]);
      }
    }
    gpu::Vector<T> out;
    for (int i = 0; i < kVector; ++i) {
      out.values[i] = gpu::from_float<T>(total[i] * inverse);
    }
    gpu::store_vector(arguments.out + row * arguments.H + column, out);
  }
  if (gpu::lane_id() == 0) {
    arguments.lse[statistic] = maximum == -INFINITY ? -INFINITY : maximum + logf(sum);
  }
}

}  // namespace

void attention_merge(const AttentionMerge& op, Stream stream) {
  const std::int64_t rows = op.out_TNH.dim(0) * op.out_TNH.dim(1);
  visit_gpu_float(op.out_TNH.dtype, [&]<class T>() {
    launch(
        attention_merge_kernel<T>,
        {.grid = {.x = ceil_div(rows, kRowsPerBlock)}, .block = {.x = kThreads}, .stream = stream},
        MergeArguments<T>{.out = op.out_TNH.as<T>(),
                          .lse = op.lse_BNS.as<float>(),
                          .part_out = op.part_out_PTNH.as<T>(),
                          .part_lse = op.part_lse_PBNS.as<float>(),
                          .num_keys = op.num_keys_P.as<std::int32_t>(),
                          .P = static_cast<int>(op.part_out_PTNH.dim(0)),
                          .rows = rows,
                          .N = op.out_TNH.dim(1),
                          .S = op.lse_BNS.dim(2),
                          .H = op.out_TNH.dim(2)});
  });
}

}  // namespace memphis::kernels::cuda
