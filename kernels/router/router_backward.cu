// SPDX-License-Identifier: Apache-2.0
//
// Backward. The lanes that held a token's logits hold their gradients; a block takes 32 tokens for
// dx, a warp 64 columns of a run of tokens for dweight, which is summed on tensor cores where x is
// bf16. Bound by memory: x is read once, and dx written. At 4.2 TB/s an SM of an H200 has time for
// 113 instructions of a thread for each 16 bytes; the loops over bf16 have 46 in dweight and 63 in
// dx.
#include <cmath>
#include <cstdint>
#include <type_traits>

#include <gpu_mma.h>

#include "kernels/router/router.h"
#include "kernels/router/router_gpu.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

using namespace router;

constexpr int kColumnThreads = 128;     // of a block whose threads take columns
constexpr int kStripColumns = 64;       // of a warp that sums on tensor cores
constexpr int kPartialBlocksPerSm = 4;  // of router_partial_mma_kernel: 128 registers a thread
constexpr int kPartialTokens = 4;       // of a thread that sums by itself, loaded at once
constexpr int kStepTokens = 16;         // of an mma, and
constexpr int kSteps = 2;               // as many at once: 4 KB of loads in flight a warp
constexpr int kDxTokens = 32;           // of a block of dx, which its weights are loaded once for
constexpr int kDxBatch = 8;             // of them at a time: a thread's loads in flight
constexpr int kDxBlocksPerSm = 4;       // on an SM, which then has 32 KB of loads in flight
constexpr int kSumThreads = 256;        // of a block that sums over runs
constexpr int kSumWarps = kSumThreads / gpu::kWarpSize;

// grid: T / (kWarps * R::kRows), block: kWarpThreads
template <class R>
__global__ void router_dlogits_kernel(float* __restrict__ dlogits,
                                      const float* __restrict__ dgates,
                                      const float* __restrict__ logits,
                                      const float* __restrict__ probs,
                                      const std::int32_t* __restrict__ experts,
                                      const std::int32_t* __restrict__ counts,
                                      const std::int32_t* __restrict__ num_valid,
                                      const std::uint8_t* __restrict__ valid,
                                      const float* __restrict__ loss_scales,
                                      float cap,
                                      Shape s) {
  const std::int64_t own =
      (static_cast<std::int64_t>(blockIdx.x) * kWarps + gpu::warp_id()) * R::kRows + R::token();
  const std::int64_t t = own < s.T ? own : s.T - 1;  // past the end: not written
  const bool valid_token = is_valid(valid, t);
  const std::int32_t* const count = counts + t / s.S * s.E;
  const float balance_scale = loss_scales[0];
  const float z_scale = loss_scales[1];

  // load: balance_scale E f_e / n with f_e = count_e / (n K) and n K assignments
  const R z = load_row<R>(logits + t * s.E, s.E, -INFINITY);
  const R prob = load_row<R>(probs + t * s.E, s.E, 0.0F);
  R own_counts;
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    const int e = R::expert(i);
    own_counts.values[i] = e < s.E ? static_cast<float>(count[e]) : 0.0F;
  }
  const float n = static_cast<float>(num_valid[t / s.S]);
  const float total = fmaxf(1.0F, n * static_cast<float>(s.K));
  const float per_count = valid_token ? balance_scale * static_cast<float>(s.E) *
                                            static_cast<float>(s.K) / total / total
                                      : 0.0F;
  R dprob;
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    dprob.values[i] = per_count * own_counts.values[i];
    for (int k = 0; k < s.K; ++k) {
      const bool chosen = experts[t * s.K + k] == R::expert(i);
      dprob.values[i] += chosen ? dgates[t * s.K + k] : 0.0F;
    }
  }

  // reduce: the softmax's mean
  R product;
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    product.values[i] = prob.values[i] * dprob.values[i];
  }
  const float mean = sum_row(product);

  // write
  R dz;
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    const float ratio = cap > 0.0F ? tanhf(z.values[i] / cap) : 0.0F;
    dz.values[i] = prob.values[i] * (dprob.values[i] - mean) * (1.0F - ratio * ratio);
  }
  if (z_scale != 0.0F) {
    R uncapped = z;
    const float lse = softmax(uncapped);
#pragma unroll
    for (int i = 0; i < R::kCount; ++i) {
      dz.values[i] += valid_token ? 2.0F * z_scale * lse * uncapped.values[i] : 0.0F;
    }
  }
  if (own < s.T) {
    store_row(dlogits + t * s.E, dz, s.E);
  }
}

// A thread goes through the block's tokens with the weights of kExperts experts in registers. It
// has four columns, of any type, so that a warp's weights fill their sectors. Tokens past the end
// repeat the last one, whose gradient its threads then write again.
// grid: T / kDxTokens x columns, block: kColumnThreads; kWidth 1, or D % kWidth == 0
template <class T, int kWidth, bool kAccumulate>
__global__ void __launch_bounds__(kColumnThreads, kDxBlocksPerSm)
    router_dx_kernel(T* __restrict__ dx,
                     const float* __restrict__ dlogits,
                     const float* __restrict__ weight,
                     Shape s) {
  // Padded: rows of eight experts then begin in banks of their own.
  alignas(16) __shared__ float shared_dz[kDxTokens][kMaxExperts + kExperts];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kDxTokens;
  const int last = static_cast<int>(s.T - first < kDxTokens ? s.T - first : kDxTokens) - 1;
  const int num_groups = s.E > kExperts ? (s.E + kExperts - 1) / kExperts : 1;
  for (int i = static_cast<int>(threadIdx.x); i < kDxTokens * kExperts; i += kColumnThreads) {
    const int token = i / kExperts;
    const float* const dz = dlogits + (first + (token < last ? token : last)) * s.E;
#pragma unroll 1
    for (int e = i % kExperts; e < num_groups * kExperts; e += kExperts) {
      shared_dz[token][e] = e < s.E ? dz[e] : 0.0F;
    }
  }
  gpu::sync_threads();  // the tokens' dz are there
  const int d = static_cast<int>(blockIdx.y * kColumnThreads + threadIdx.x) * kWidth;
  if (d >= s.D) {
    return;
  }
  T* const out = dx + first * s.D + d;
  float w[kExperts][kWidth];
  for (int batch = 0; batch <= last; batch += kDxBatch) {
    // load: what is added to comes from furthest away and is needed last
    T* rows[kDxBatch];
    float before[kDxBatch][kWidth];
#pragma unroll
    for (int j = 0; j < kDxBatch; ++j) {
      rows[j] = out + (batch + j < last ? batch + j : last) * s.D;
      if constexpr (kAccumulate) {
        gpu::load_floats(rows[j], before[j]);
      }
    }
    // reduce
    float sums[kDxBatch][kWidth] = {};
    for (int group = 0; group < num_groups; ++group) {
      if (batch == 0 || num_groups > 1) {  // those of one group stay in registers
#pragma unroll
        for (int i = 0; i < kExperts; ++i) {
          const int e = group * kExperts + i < s.E ? group * kExperts + i : s.E - 1;
          gpu::load_floats(weight + e * s.D + d, w[i]);
        }
      }
#pragma unroll
      for (int j = 0; j < kDxBatch; ++j) {
        float dz[kExperts];
        gpu::load_floats(&shared_dz[batch + j][group * kExperts], dz);
#pragma unroll
        for (int i = 0; i < kExperts; ++i) {
#pragma unroll
          for (int c = 0; c < kWidth; ++c) {
            sums[j][c] += dz[i] * w[i][c];
          }
        }
      }
    }
    // write
#pragma unroll
    for (int j = 0; j < kDxBatch; ++j) {
      if constexpr (kAccumulate) {
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          sums[j][c] += before[j][c];
        }
      }
      gpu::store_floats(rows[j], sums[j]);
    }
  }
}

// partial[run] = dz^T x over the run's tokens.
// grid: runs x columns x expert groups, block: kColumnThreads; kWidth 1, or D % kWidth == 0
template <class T, int kWidth>
__global__ void router_partial_kernel(float* __restrict__ partial,
                                      const float* __restrict__ dlogits,
                                      const T* __restrict__ x,
                                      std::int64_t run_tokens,
                                      Shape s) {
  const std::int64_t d =
      (static_cast<std::int64_t>(blockIdx.y) * kColumnThreads + threadIdx.x) * kWidth;
  if (d >= s.D) {
    return;
  }
  const int group = static_cast<int>(blockIdx.z) * kExperts;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * run_tokens;
  const std::int64_t end = begin + run_tokens < s.T ? begin + run_tokens : s.T;
  float sums[kExperts][kWidth] = {};
  for (std::int64_t first = begin; first < end; first += kPartialTokens) {
    float values[kPartialTokens][kWidth];
#pragma unroll
    for (int j = 0; j < kPartialTokens; ++j) {
      gpu::load_floats(x + (first + j < end ? first + j : end - 1) * s.D + d, values[j]);
    }
#pragma unroll
    for (int j = 0; j < kPartialTokens; ++j) {
#pragma unroll
      for (int i = 0; i < kExperts; ++i) {
        const bool present = first + j < end && group + i < s.E;
        const float dz = present ? dlogits[(first + j) * s.E + group + i] : 0.0F;
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          sums[i][c] += dz * values[j][c];
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kExperts; ++i) {
    if (group + i < s.E) {
      float* const out =
          partial + (static_cast<std::int64_t>(blockIdx.x) * s.E + group + i) * s.D + d;
      gpu::store_floats(out, sums[i]);
    }
  }
}

// The same on tensor cores, where x is bf16: x^T, four tiles of 16 columns by 16 tokens, times dz,
// of eight experts. Rows and depth of a product may come in any order: one that gives lanes whole
// vectors. Of 64 columns and 16 tokens, lane 4 r + c loads the eight columns from 8 r on of the
// four tokens from 4 c on. Word i of each token has two columns of tile i:
//
//   row of tile i   column                       depth                  token
//   r               8 r + 2 i, low halves        2 c and the next       4 c, 4 c + 1
//   r + 8           8 r + 2 i + 1, high halves   2 c + 8 and the next   4 c + 2, 4 c + 3
//
// The depth is the same in all tiles, so that a lane's dz serve all four. Of the product it has
// experts 2 c and the next, of its own eight columns.
// grid: runs x columns x expert groups, block: kWarpThreads; D % 8 == 0
__global__ void __launch_bounds__(kWarpThreads, kPartialBlocksPerSm)
    router_partial_mma_kernel(float* __restrict__ partial,
                              const float* __restrict__ dlogits,
                              const bf16* __restrict__ x,
                              std::int64_t run_tokens,
                              Shape s) {
  constexpr int kLaneColumns = kStripColumns / 8;
  constexpr int kLaneTokens = kStepTokens / 4;
  constexpr int kTiles = kLaneColumns / 2;  // a lane has two rows of each
  const int lane = gpu::lane_id();
  const int strip = static_cast<int>(blockIdx.y) * kWarps + gpu::warp_id();
  const int d = strip * kStripColumns + lane / 4 * kLaneColumns;
  const int group = static_cast<int>(blockIdx.z) * kExperts;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * run_tokens;
  const auto num_tokens = static_cast<int>(s.T - begin < run_tokens ? s.T - begin : run_tokens);
  // Columns and experts past the end repeat others, and are not written.
  const int expert = group + lane / 4 < s.E ? group + lane / 4 : s.E - 1;
  const bf16* const x_run = x + begin * s.D + (d < s.D ? d : 0);
  const float* const dz_run = dlogits + begin * s.E + expert;

  float sums[kTiles][4] = {};  // with dz's first terms
  float rest[kTiles][4] = {};  // with the others, 2^-8 as large and less
  for (int first = 0; first < num_tokens; first += kSteps * kStepTokens) {
    gpu::Packed<bf16> rows[kSteps][kLaneTokens];
    float dz[kSteps][kLaneTokens];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int j = 0; j < kLaneTokens; ++j) {
        const int own = first + step * kStepTokens + lane % 4 * kLaneTokens + j;
        const int t = own < num_tokens ? own : num_tokens - 1;
        rows[step][j] = gpu::load_packed(x_run + t * s.D);
        dz[step][j] = own < num_tokens ? dz_run[static_cast<std::int64_t>(t) * s.E] : 0.0F;
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const gpu::SplitPair low = gpu::split_bf16(dz[step][0], dz[step][1]);
      const gpu::SplitPair high = gpu::split_bf16(dz[step][2], dz[step][3]);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const std::uint32_t word[kLaneTokens] = {rows[step][0].words[i],
                                                 rows[step][1].words[i],
                                                 rows[step][2].words[i],
                                                 rows[step][3].words[i]};
        const std::uint32_t columns[4] = {gpu::low_halves(word[0], word[1]),
                                          gpu::high_halves(word[0], word[1]),
                                          gpu::low_halves(word[2], word[3]),
                                          gpu::high_halves(word[2], word[3])};
        gpu::mma_m16n8k16(sums[i], columns, low.terms[0], high.terms[0]);
#pragma unroll
        for (int term = 1; term < gpu::kSplitTerms; ++term) {
          gpu::mma_m16n8k16(rest[i], columns, low.terms[term], high.terms[term]);
        }
      }
    }
  }
  // write: a lane has two experts of its columns
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int e = group + lane % 4 * 2 + i;
    float out[kLaneColumns];
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      out[c] = sums[c / 2][c % 2 * 2 + i] + rest[c / 2][c % 2 * 2 + i];
    }
    if (e < s.E && d < s.D) {
      gpu::store_floats(partial + (static_cast<std::int64_t>(blockIdx.x) * s.E + e) * s.D + d, out);
    }
  }
}

// Sums the runs: a warp of the block takes every kSumWarps-th of them.
// grid: E * D / (kWarpSize * kWidth), block: kSumThreads; kWidth 1, or D % kWidth == 0
template <int kWidth>
__global__ void router_dweight_kernel(float* __restrict__ dweight,
                                      const float* __restrict__ partial,
                                      std::int64_t num_runs,
                                      std::int64_t num_weights,
                                      bool add) {
  constexpr int kWeights = gpu::kWarpSize * kWidth;
  constexpr int kLoads = 3;  // at once, of the runs that kRouterPartials gives a warp
  alignas(16) __shared__ float sums[kSumWarps][kWeights];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kWeights;
  const int own = gpu::lane_id() * kWidth;
  float sum[kWidth] = {};
  if (first + own < num_weights) {
#pragma unroll 1
    for (std::int64_t run = gpu::warp_id(); run < num_runs; run += kLoads * kSumWarps) {
      float values[kLoads][kWidth] = {};
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        if (run + j * kSumWarps < num_runs) {
          gpu::load_floats(partial + (run + j * kSumWarps) * num_weights + first + own, values[j]);
        }
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          sum[c] += values[j][c];
        }
      }
    }
  }
  gpu::store_floats(&sums[gpu::warp_id()][own], sum);
  gpu::sync_threads();  // the sums of all warps are written

  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < kWeights && first + thread < num_weights) {
    float total = 0.0F;
#pragma unroll
    for (int warp = 0; warp < kSumWarps; ++warp) {
      total += sums[warp][thread];
    }
    float* const to = dweight + first + thread;
    *to = add ? *to + total : total;
  }
}

template <class T, int kWidth>
void launch_backward(const RouterBackward& op, const Shape& s, Stream stream) {
  const std::int64_t run_tokens = ceil_div(s.T, op.partial_PED.dim(0));
  const std::int64_t num_runs = run_tokens == 0 ? 0 : ceil_div(s.T, run_tokens);
  const std::int64_t num_groups = ceil_div(s.E, kExperts);
  if constexpr (std::is_same_v<T, bf16> && kWidth > 1) {
    launch(
        router_partial_mma_kernel,
        choose_launch({.x = num_runs, .y = ceil_div(s.D, kWarps * kStripColumns), .z = num_groups},
                      kWarpThreads,
                      stream),
        op.partial_PED.as<float>(),
        op.dlogits_TE.as<float>(),
        op.x_TD.as<T>(),
        run_tokens,
        s);
  } else {
    launch(
        router_partial_kernel<T, kWidth>,
        choose_launch({.x = num_runs, .y = ceil_div(s.D, kColumnThreads * kWidth), .z = num_groups},
                      kColumnThreads,
                      stream),
        op.partial_PED.as<float>(),
        op.dlogits_TE.as<float>(),
        op.x_TD.as<T>(),
        run_tokens,
        s);
  }
  constexpr int kWeightWidth = kWidth == 1 ? 1 : 4;  // of f32, 16 bytes
  launch(
      router_dweight_kernel<kWeightWidth>,
      choose_launch({.x = ceil_div(s.E * s.D, gpu::kWarpSize * kWeightWidth)}, kSumThreads, stream),
      op.dweight_ED.as<float>(),
      op.partial_PED.as<float>(),
      num_runs,
      s.E * s.D,
      op.weight_gradient == WeightGradient::add);
  launch(op.accumulate ? router_dx_kernel<T, kWeightWidth, true>
                       : router_dx_kernel<T, kWeightWidth, false>,
         choose_launch(
             {.x = ceil_div(s.T, kDxTokens), .y = ceil_div(s.D, kColumnThreads * kWeightWidth)},
             kColumnThreads,
             stream),
         op.dx_TD.as<T>(),
         op.dlogits_TE.as<float>(),
         op.weight_ED.as<float>(),
         s);
}

}  // namespace

void router_backward(const RouterBackward& op, Stream stream) {
  const Shape s = shape_of(op.x_TD, op.counts_BE, op.experts_TK);
  visit_row(s.E, [&]<class R>() {
    launch(router_dlogits_kernel<R>,
           choose_launch({.x = ceil_div(s.T, kWarps * R::kRows)}, kWarpThreads, stream),
           op.dlogits_TE.as<float>(),
           op.dgates_TK.as<float>(),
           op.logits_TE.as<float>(),
           op.probs_TE.as<float>(),
           op.experts_TK.as<std::int32_t>(),
           op.counts_BE.as<std::int32_t>(),
           op.valid_B.as<std::int32_t>(),
           valid_tokens(op.valid_T),
           op.loss_scales_2.as<float>(),
           op.cap,
           s);
  });
  visit_gpu_float(op.dx_TD.dtype, [&]<class T>() {
    constexpr int kWidth = gpu::kVectorWidth<T>;
    if (s.D % kWidth == 0) {
      launch_backward<T, kWidth>(op, s, stream);
    } else {
      launch_backward<T, 1>(op, s, stream);
    }
  });
}

}  // namespace memphis::kernels::cuda
