// SPDX-License-Identifier: Apache-2.0
//
// Forward: a warp takes kTokens tokens, so that the weights, which are wider than a token's row,
// are read from L1 once for several; then it holds one token's logits, four to a lane, for softmax
// and top-K. Backward: a warp a token for the logits' gradients, a block 32 tokens for dx, a block
// a run of tokens for dweight. Bound by memory: x is read once a pass.
#include "kernels/router/router.h"

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_mma.h>
#include <gpu_warp.h>

#include "kernels/or_null.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kTokens = 4;        // of a warp in forward: 32 accumulators a thread
constexpr int kExperts = 8;       // summed together: Grok's number of experts
constexpr int kMaxExperts = 128;  // the contract's
constexpr int kLaneExperts = kMaxExperts / gpu::kWarpSize;
constexpr int kWarps = 4;  // of a block that gives warps tokens
constexpr int kWarpThreads = kWarps * gpu::kWarpSize;
constexpr int kColumnThreads = 128;  // of a block whose threads take columns
constexpr int kStripColumns = 64;    // of a warp that sums on tensor cores
constexpr int kPartialBlocks = 4;    // on an SM
constexpr int kStepTokens = 16;      // of an mma, and
constexpr int kSteps = 2;            // as many at once: 4 KB of loads in flight a warp
constexpr int kDxTokens = 32;        // of a block of dx, which its weights are loaded once for
constexpr int kDxBatch = 8;          // of them at a time: a thread's loads in flight
constexpr int kDxBlocks = 4;         // on an SM, which then has 32 KB of loads in flight
constexpr int kSumThreads = 256;     // of a block that sums over a sequence, or over runs
constexpr int kSumWarps = kSumThreads / gpu::kWarpSize;

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

// A token's values over the experts: lane i holds those of experts i, i + 32, i + 64, i + 96.
struct Row {
  float values[kLaneExperts];
};

__device__ __forceinline__ Row load_row(const float* address, int E, float absent) {
  Row row;
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    const int e = i * gpu::kWarpSize + gpu::lane_id();
    row.values[i] = e < E ? address[e] : absent;
  }
  return row;
}

__device__ __forceinline__ void store_row(float* address, const Row& row, int E) {
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    const int e = i * gpu::kWarpSize + gpu::lane_id();
    if (e < E) {
      address[e] = row.values[i];
    }
  }
}

__device__ __forceinline__ float sum_row(const Row& row) {
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    sum += row.values[i];
  }
  return gpu::warp_sum(sum);
}

// Softmax of `row`, whose absent values are -inf, in place; returns its logsumexp. A NaN is lost in
// the maximum and is not in the sum.
__device__ __forceinline__ float softmax(Row& row) {
  float largest = -FLT_MAX;
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    largest = fmaxf(largest, row.values[i]);
  }
  largest = gpu::warp_max(largest);
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    row.values[i] = expf(row.values[i] - largest);
  }
  const float sum = sum_row(row);
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    row.values[i] /= sum;
  }
  return largest + logf(sum);
}

// The K largest of `probs`, descending, equal ones by index. NaN counts as -1, below every
// probability and above what is absent or taken: the experts of such a token are 0 .. K-1.
__device__ void choose_experts(
    float* gates, std::int32_t* experts, const Row& probs, int E, int K) {
  constexpr float kNan = -1.0F;
  constexpr float kTaken = -2.0F;
  Row left;
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    const float p = probs.values[i];
    left.values[i] = i * gpu::kWarpSize + gpu::lane_id() >= E ? kTaken : p >= 0.0F ? p : kNan;
  }
  for (int k = 0; k < K; ++k) {
    float best = kTaken;
    float gate = 0.0F;
    int expert = kMaxExperts;
#pragma unroll
    for (int i = 0; i < kLaneExperts; ++i) {
      if (left.values[i] > best) {
        best = left.values[i];
        gate = probs.values[i];
        expert = i * gpu::kWarpSize + gpu::lane_id();
      }
    }
    for (int mask = gpu::kWarpSize / 2; mask > 0; mask /= 2) {
      const float other = gpu::shuffle_xor(best, mask);
      const float other_gate = gpu::shuffle_xor(gate, mask);
      const int other_expert = gpu::shuffle_xor(expert, mask);
      if (other > best || (other == best && other_expert < expert)) {
        best = other;
        gate = other_gate;
        expert = other_expert;
      }
    }
#pragma unroll
    for (int i = 0; i < kLaneExperts; ++i) {
      if (i * gpu::kWarpSize + gpu::lane_id() == expert) {
        left.values[i] = kTaken;
      }
    }
    if (gpu::lane_id() == 0) {
      gates[k] = gate;
      experts[k] = expert;
    }
  }
}

// Eight bf16, two to a word, the first in its low half.
using Words = gpu::Vector<std::uint32_t, 4>;

__device__ __forceinline__ Words load_words(const bf16* address) {
  return gpu::load_vector<4>(reinterpret_cast<const std::uint32_t*>(address));
}

__device__ __forceinline__ std::uint32_t low_halves(std::uint32_t first, std::uint32_t second) {
  return second << 16U | (first & 0xFFFFU);
}
__device__ __forceinline__ std::uint32_t high_halves(std::uint32_t first, std::uint32_t second) {
  return (second & 0xFFFF0000U) | first >> 16U;
}

// What a tensor core takes of two f32: each is the sum of kTerms bf16 of eight bits, cut off one
// after the other, which is all of its 24. terms[i] holds the i-th of both.
constexpr int kTerms = 3;
struct SplitPair {
  std::uint32_t terms[kTerms];
};

__device__ __forceinline__ SplitPair split(float first, float second) {
  SplitPair pair;
#pragma unroll
  for (std::uint32_t& term : pair.terms) {
    const auto first_bits = std::bit_cast<std::uint32_t>(first);
    const auto second_bits = std::bit_cast<std::uint32_t>(second);
    term = high_halves(first_bits, second_bits);
    first -= std::bit_cast<float>(first_bits & 0xFFFF0000U);
    second -= std::bit_cast<float>(second_bits & 0xFFFF0000U);
  }
  return pair;
}

// grid: T / (kWarps * kTokens), block: kWarpThreads; kWidth 1, or D % kWidth == 0
template <class T, int kWidth>
__global__ void router_forward_kernel(float* __restrict__ logits,
                                      float* __restrict__ probs,
                                      float* __restrict__ gates,
                                      std::int32_t* __restrict__ experts,
                                      float* __restrict__ z_loss,
                                      const T* __restrict__ x,
                                      const float* __restrict__ weight,
                                      const std::uint8_t* __restrict__ valid,
                                      float cap,
                                      Shape s) {
  __shared__ float shared_logits[kWarps][kTokens][kMaxExperts];
  auto& own_logits = shared_logits[gpu::warp_id()];
  const int lane = gpu::lane_id();
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kWarps + gpu::warp_id()) * kTokens;
  if (first >= s.T) {
    return;
  }

  // reduce: the logits of kExperts experts at a time; rows past the end repeat the last one
  const T* rows[kTokens];
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    rows[j] = x + (first + j < s.T ? first + j : s.T - 1) * s.D;
  }
  for (int group = 0; group < s.E; group += kExperts) {
    float sums[kTokens][kExperts] = {};
    for (std::int64_t d = lane * kWidth; d < s.D; d += gpu::kWarpSize * kWidth) {
      float values[kTokens][kWidth];
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        gpu::load_floats(rows[j] + d, values[j]);
      }
#pragma unroll
      for (int i = 0; i < kExperts; ++i) {
        const int e = group + i < s.E ? group + i : s.E - 1;
        float w[kWidth];
        gpu::load_floats(weight + e * s.D + d, w);
#pragma unroll
        for (int j = 0; j < kTokens; ++j) {
#pragma unroll
          for (int c = 0; c < kWidth; ++c) {
            sums[j][i] += values[j][c] * w[c];
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
#pragma unroll
      for (int i = 0; i < kExperts; ++i) {
        const float sum = gpu::warp_sum(sums[j][i]);
        if (lane == 0 && group + i < s.E) {
          own_logits[j][group + i] = sum;
        }
      }
    }
  }
  gpu::sync_warp();  // the logits of this warp's tokens are written

  // write: one token after the other
  for (int j = 0; j < kTokens && first + j < s.T; ++j) {
    const std::int64_t t = first + j;
    Row row = load_row(own_logits[j], s.E, -INFINITY);
    store_row(logits + t * s.E, row, s.E);
    Row prob = row;
    const float lse = softmax(prob);
    if (cap > 0.0F) {
#pragma unroll
      for (int i = 0; i < kLaneExperts; ++i) {
        const bool present = i * gpu::kWarpSize + lane < s.E;
        prob.values[i] = present ? cap * tanhf(row.values[i] / cap) : -INFINITY;
      }
      softmax(prob);
    }
    store_row(probs + t * s.E, prob, s.E);
    if (lane == 0) {
      z_loss[t] = is_valid(valid, t) ? lse * lse : 0.0F;
    }
    choose_experts(gates + t * s.K, experts + t * s.K, prob, s.E, s.K);
  }
}

// A block takes an expert of a sequence, a thread every kSumThreads-th of its tokens; the blocks of a
// sequence find each other's in L2. Counts are exact in f32, as no sequence has 2^24 tokens.
// grid: E * B, block: kSumThreads
__global__ void router_sums_kernel(std::int32_t* __restrict__ counts,
                                   float* __restrict__ probs_sum,
                                   std::int32_t* __restrict__ valid_tokens,
                                   const float* __restrict__ probs,
                                   const std::int32_t* __restrict__ experts,
                                   const std::uint8_t* __restrict__ valid,
                                   Shape s) {
  __shared__ float scratch[gpu::kWarpSize];
  const int expert = static_cast<int>(blockIdx.x) % s.E;
  const std::int64_t sequence = static_cast<int>(blockIdx.x) / s.E;
  float sum = 0.0F;
  float count = 0.0F;
  float num_valid = 0.0F;
#pragma unroll 8
  for (std::int64_t i = threadIdx.x; i < s.S; i += kSumThreads) {
    const std::int64_t t = sequence * s.S + i;
    const float weight = is_valid(valid, t) ? 1.0F : 0.0F;
    const float prob = probs[t * s.E + expert];
    sum += weight > 0.0F ? prob : 0.0F;
    num_valid += weight;
    for (int k = 0; k < s.K; ++k) {
      count += experts[t * s.K + k] == expert ? weight : 0.0F;
    }
  }
  sum = gpu::block_sum(sum, scratch);
  count = gpu::block_sum(count, scratch);
  num_valid = gpu::block_sum(num_valid, scratch);
  if (threadIdx.x == 0) {
    probs_sum[sequence * s.E + expert] = sum;
    counts[sequence * s.E + expert] = static_cast<std::int32_t>(count);
    if (expert == 0) {
      valid_tokens[sequence] = static_cast<std::int32_t>(num_valid);
    }
  }
}

// A block takes a sequence, a thread an expert. grid: B, block: kMaxExperts
__global__ void router_balance_kernel(float* __restrict__ balance,
                                      const std::int32_t* __restrict__ counts,
                                      const float* __restrict__ probs_sum,
                                      const std::int32_t* __restrict__ num_valid,
                                      int E,
                                      int K) {
  __shared__ float scratch[gpu::kWarpSize];
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * E + thread;
  const float product = thread < E ? probs_sum[i] * static_cast<float>(counts[i]) : 0.0F;
  const float total = gpu::block_sum(product, scratch);
  if (thread == 0) {
    const auto n = static_cast<float>(num_valid[blockIdx.x]);
    const float scale = static_cast<float>(E) / static_cast<float>(K);
    balance[blockIdx.x] = n == 0.0F ? 0.0F : total / n / n * scale;
  }
}

// grid: T / kWarps, block: kWarpThreads
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
  const int lane = gpu::lane_id();
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kWarps + gpu::warp_id();
  if (t >= s.T) {
    return;
  }
  const bool valid_token = is_valid(valid, t);
  const std::int32_t* const count = counts + t / s.S * s.E;
  const float balance_scale = loss_scales[0];
  const float z_scale = loss_scales[1];

  // load: balance_scale E f_e / n with f_e = count_e / (n K) and n K assignments
  const Row z = load_row(logits + t * s.E, s.E, -INFINITY);
  const Row prob = load_row(probs + t * s.E, s.E, 0.0F);
  Row own_counts;
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    const int e = i * gpu::kWarpSize + lane;
    own_counts.values[i] = e < s.E ? static_cast<float>(count[e]) : 0.0F;
  }
  const float n = static_cast<float>(num_valid[t / s.S]);
  const float total = fmaxf(1.0F, n * static_cast<float>(s.K));
  const float per_count = valid_token ? balance_scale * static_cast<float>(s.E) *
                                            static_cast<float>(s.K) / total / total
                                      : 0.0F;
  Row dprob;
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    dprob.values[i] = per_count * own_counts.values[i];
    for (int k = 0; k < s.K; ++k) {
      const bool chosen = experts[t * s.K + k] == i * gpu::kWarpSize + lane;
      dprob.values[i] += chosen ? dgates[t * s.K + k] : 0.0F;
    }
  }

  // reduce: the softmax's mean
  Row product;
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    product.values[i] = prob.values[i] * dprob.values[i];
  }
  const float mean = sum_row(product);

  // write
  Row dz;
#pragma unroll
  for (int i = 0; i < kLaneExperts; ++i) {
    const float ratio = cap > 0.0F ? tanhf(z.values[i] / cap) : 0.0F;
    dz.values[i] = prob.values[i] * (dprob.values[i] - mean) * (1.0F - ratio * ratio);
  }
  if (valid_token && z_scale != 0.0F) {
    Row uncapped = z;
    const float lse = softmax(uncapped);
#pragma unroll
    for (int i = 0; i < kLaneExperts; ++i) {
      dz.values[i] += 2.0F * z_scale * lse * uncapped.values[i];
    }
  }
  store_row(dlogits + t * s.E, dz, s.E);
}

// A thread goes through the block's tokens with the weights of kExperts experts in registers. It
// has four columns, of any type, so that a warp's weights fill their sectors.
// grid: T / kDxTokens x columns, block: kColumnThreads; kWidth 1, or D % kWidth == 0
template <class T, int kWidth, bool kAccumulate>
__global__ void __launch_bounds__(kColumnThreads, kDxBlocks)
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
      if (batch + j > last) {
        break;
      }
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
  for (std::int64_t first = begin; first < end; first += kTokens) {
    float values[kTokens][kWidth];
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      gpu::load_floats(x + (first + j < end ? first + j : end - 1) * s.D + d, values[j]);
    }
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
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

// The same on tensor cores, where x is bf16. Rows and depth of a product may come in any order: of
// kStripColumns columns and kStepTokens tokens lane l loads columns 8 (l / 4) and on of tokens
// 4 (l % 4) and on, and halves of its words are its part of x^T. Its part of dz serves all columns.
// grid: runs x columns x expert groups, block: kWarpThreads; D % 8 == 0
__global__ void __launch_bounds__(kWarpThreads, kPartialBlocks)
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
    Words rows[kSteps][kLaneTokens];
    float dz[kSteps][kLaneTokens];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int j = 0; j < kLaneTokens; ++j) {
        const int own = first + step * kStepTokens + lane % 4 * kLaneTokens + j;
        const int t = own < num_tokens ? own : num_tokens - 1;
        rows[step][j] = load_words(x_run + t * s.D);
        dz[step][j] = own < num_tokens ? dz_run[static_cast<std::int64_t>(t) * s.E] : 0.0F;
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const SplitPair low = split(dz[step][0], dz[step][1]);
      const SplitPair high = split(dz[step][2], dz[step][3]);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const std::uint32_t word[kLaneTokens] = {rows[step][0].values[i],
                                                 rows[step][1].values[i],
                                                 rows[step][2].values[i],
                                                 rows[step][3].values[i]};
        const std::uint32_t columns[4] = {low_halves(word[0], word[1]),
                                          high_halves(word[0], word[1]),
                                          low_halves(word[2], word[3]),
                                          high_halves(word[2], word[3])};
        gpu::mma_m16n8k16(sums[i], columns, low.terms[0], high.terms[0]);
#pragma unroll
        for (int term = 1; term < kTerms; ++term) {
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

Launch choose_launch(Dim3 grid, std::int64_t threads, Stream stream) {
  return {.grid = grid, .block = {.x = threads}, .shared_bytes = 0, .stream = stream};
}

const std::uint8_t* valid_tokens(const TensorView& valid_T) {
  return or_null<std::uint8_t>(valid_T);
}

template <class T, int kWidth>
void launch_forward(const RouterForward& op, const Shape& s, Stream stream) {
  launch(router_forward_kernel<T, kWidth>,
         choose_launch({.x = ceil_div(s.T, kWarps * kTokens)}, kWarpThreads, stream),
         op.logits_TE.as<float>(),
         op.probs_TE.as<float>(),
         op.gates_TK.as<float>(),
         op.experts_TK.as<std::int32_t>(),
         op.z_T.as<float>(),
         op.x_TD.as<T>(),
         op.weight_ED.as<float>(),
         valid_tokens(op.valid_T),
         op.cap,
         s);
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

Shape shape_of(const TensorView& x_TD, const TensorView& counts_BE, const TensorView& experts_TK) {
  const std::int64_t B = counts_BE.dim(0);
  return {.B = B,
          .T = x_TD.dim(0),
          .D = x_TD.dim(1),
          .S = B == 0 ? 0 : x_TD.dim(0) / B,
          .E = static_cast<int>(counts_BE.dim(1)),
          .K = static_cast<int>(experts_TK.dim(1))};
}

}  // namespace

void router_forward(const RouterForward& op, Stream stream) {
  const Shape s = shape_of(op.x_TD, op.counts_BE, op.experts_TK);
  visit_gpu_float(op.x_TD.dtype, [&]<class T>() {
    constexpr int kWidth = gpu::kVectorWidth<T>;
    if (s.D % kWidth == 0) {
      launch_forward<T, kWidth>(op, s, stream);
    } else {  // only the first row is aligned
      launch_forward<T, 1>(op, s, stream);
    }
  });
  launch(router_sums_kernel,
         choose_launch({.x = s.E * s.B}, kSumThreads, stream),
         op.counts_BE.as<std::int32_t>(),
         op.probs_sum_BE.as<float>(),
         op.valid_B.as<std::int32_t>(),
         op.probs_TE.as<float>(),
         op.experts_TK.as<std::int32_t>(),
         valid_tokens(op.valid_T),
         s);
}

void router_balance(const RouterBalance& op, Stream stream) {
  launch(router_balance_kernel,
         choose_launch({.x = op.counts_BE.dim(0)}, kMaxExperts, stream),
         op.balance_B.as<float>(),
         op.counts_BE.as<std::int32_t>(),
         op.probs_sum_BE.as<float>(),
         op.valid_B.as<std::int32_t>(),
         static_cast<int>(op.counts_BE.dim(1)),
         static_cast<int>(op.experts_per_token));
}

void router_backward(const RouterBackward& op, Stream stream) {
  const Shape s = shape_of(op.x_TD, op.counts_BE, op.experts_TK);
  launch(router_dlogits_kernel,
         choose_launch({.x = ceil_div(s.T, kWarps)}, kWarpThreads, stream),
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
