// SPDX-License-Identifier: Apache-2.0
//
// A lane a vector of the result, as many lanes of a warp as a row of H elements has vectors, or a
// loop over columns for a warp. Bound by the bytes of the parts, of which a lane has four on their
// way.
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
constexpr int kBlocks = 5;  // on an SM: 48 registers, and 80 KiB on their way
constexpr int kPartsAtOnce = 4;

template <class T>
struct MergeArguments {
  T* out;
  float* lse;
  const T* part_out;
  const float* part_lse;
  const std::int32_t* num_keys;
  int P;
  std::int64_t rows;  // T * N
  // 32 bits, in which divisions are short.
  unsigned N;
  unsigned S;
  unsigned H;
};

// grid: ceil(T * N / (kThreads / kLanes)), block: kThreads, shared: none; requires H % 8 == 0. A
// row has kLanes lanes.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocks)
    attention_merge_kernel(MergeArguments<T> arguments) {
  const unsigned row = blockIdx.x * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (row >= arguments.rows) {
    return;
  }
  const unsigned t = row / arguments.N;
  const unsigned head = t / arguments.S * arguments.N + row % arguments.N;  // of all sequences
  const std::int64_t statistic = static_cast<std::int64_t>(head) * arguments.S + t % arguments.S;
  const float* const part_lse = arguments.part_lse + statistic;

  // Weights are relative to the largest part. All lanes of a row read the same few values.
  float maximum = -INFINITY;
#pragma unroll 4
  for (int p = 0; p < arguments.P; ++p) {
    maximum = fmaxf(maximum, part_lse[p * arguments.rows]);
  }
  const auto weight = [&](int p) {
    return maximum == -INFINITY ? static_cast<float>(arguments.num_keys[p])
                                : expf(part_lse[p * arguments.rows] - maximum);
  };

  constexpr int kVector = gpu::kVectorWidth<T>;
  for (unsigned column = threadIdx.x % kLanes * kVector; column < arguments.H;
       column += kLanes * kVector) {
    const std::int64_t at = static_cast<std::int64_t>(row) * arguments.H + column;
    float sum = 0.0F;
    float total[kVector] = {};
    for (int first = 0; first < arguments.P; first += kPartsAtOnce) {
      gpu::Packed<T> parts[kPartsAtOnce];
      float weights[kPartsAtOnce];
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) {
        if (first + i < arguments.P) {
          parts[i] = gpu::load_packed(arguments.part_out +
                                      (first + i) * arguments.rows * arguments.H + at);
        }
      }
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) {
        if (first + i < arguments.P) {
          weights[i] = weight(first + i);
        }
      }
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) {
        if (first + i < arguments.P) {
          float values[kVector];
          gpu::unpack<T>(parts[i], values);
          sum += weights[i];
#pragma unroll
          for (int k = 0; k < kVector; ++k) {
            total[k] += weights[i] * values[k];
          }
        }
      }
    }
    const float inverse = sum > 0.0F ? 1.0F / sum : 0.0F;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      total[k] *= inverse;
    }
    gpu::store_packed(arguments.out + at, gpu::pack<T>(total));
    if (column == 0) {
      arguments.lse[statistic] = maximum == -INFINITY ? -INFINITY : maximum + logf(sum);
    }
  }
}

// Calls visitor.operator()<kLanes>() with the fewest compiled lanes that have a vector each, if
// any.
template <class Visitor>
void visit_lanes(std::int64_t num_vectors, Visitor&& visitor) {
  if (num_vectors <= 8) {
    visitor.template operator()<8>();
  } else if (num_vectors <= 16) {
    visitor.template operator()<16>();
  } else {
    visitor.template operator()<32>();
  }
}

}  // namespace

void attention_merge(const AttentionMerge& op, Stream stream) {
  const std::int64_t rows = op.out_TNH.dim(0) * op.out_TNH.dim(1);
  const std::int64_t H = op.out_TNH.dim(2);
  visit_gpu_float(op.out_TNH.dtype, [&]<class T>() {
    const MergeArguments<T> arguments{.out = op.out_TNH.as<T>(),
                                      .lse = op.lse_BNS.as<float>(),
                                      .part_out = op.part_out_PTNH.as<T>(),
                                      .part_lse = op.part_lse_PBNS.as<float>(),
                                      .num_keys = op.num_keys_P.as<std::int32_t>(),
                                      .P = static_cast<int>(op.part_out_PTNH.dim(0)),
                                      .rows = rows,
                                      .N = static_cast<unsigned>(op.out_TNH.dim(1)),
                                      .S = static_cast<unsigned>(op.lse_BNS.dim(2)),
                                      .H = static_cast<unsigned>(H)};
    visit_lanes(H / gpu::kVectorWidth<T>, [&]<int kLanes>() {
      launch(attention_merge_kernel<T, kLanes>,
             {.grid = {.x = ceil_div(rows, kThreads / kLanes)},
              .block = {.x = kThreads},
              .stream = stream},
             arguments);
    });
  });
}

}  // namespace memphis::kernels::cuda
