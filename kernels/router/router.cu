// SPDX-License-Identifier: Apache-2.0
//
// Forward: where x is bf16 a block multiplies 64 tokens on tensor cores, as the weights, which are
// wider than a token's row, are then read once for 64; otherwise a warp takes four on its threads.
// Then eight lanes hold a token's logits, or a warp where there are more, for softmax and top-K.
// Backward: the same lanes for the logits' gradients, a block 32 tokens for dx, a warp 64 columns
// of a run of tokens for dweight. Bound by memory: x is read once a pass. At 4.2 TB/s an SM of an
// H200 has time for 113 instructions of a thread for each 16 bytes; the loops over bf16 have 35 in
// forward, 46 in dweight and 63 in dx.
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
#include "kernels/whole_warps.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kTokens = 4;        // of a warp in forward: 32 accumulators a thread
constexpr int kExperts = 8;       // summed together: Grok's number of experts
constexpr int kMaxExperts = 128;  // the contract's
constexpr int kWarps = 4;         // of a block that gives warps tokens
constexpr int kWarpThreads = kWarps * gpu::kWarpSize;
constexpr int kColumnThreads = 128;  // of a block whose threads take columns
constexpr int kTileTokens = 64;  // of a block whose warps share columns out: an SM's at T = 8192
constexpr int kTileWarps = 16;   // with 4 KB of loads in flight each
constexpr int kTileThreads = kTileWarps * gpu::kWarpSize;
constexpr int kStripColumns = 64;      // of a warp that sums on tensor cores
constexpr int kPartialBlocks = 4;      // on an SM
constexpr int kStepTokens = 16;        // of an mma, and
constexpr int kSteps = 2;              // as many at once: 4 KB of loads in flight a warp
constexpr int kDxTokens = 32;          // of a block of dx, which its weights are loaded once for
constexpr int kDxBatch = 8;            // of them at a time: a thread's loads in flight
constexpr int kDxBlocks = 4;           // on an SM, which then has 32 KB of loads in flight
constexpr int kSumTokens = 8;          // of a thread that sums over a sequence, at a time
constexpr int kMostSumThreads = 1024;  // of its block, which then takes 8192 at a time
constexpr int kSumThreads = 256;       // of a block that sums over runs
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

// A token's values over the experts: kLanes lanes side by side hold those of every kLanes-th expert
// each. A warp has the rows of kTokens tokens, which go through a function together.
template <int kLanesOfRow, int kValues>
struct Row {
  static constexpr int kLanes = kLanesOfRow;
  static constexpr int kTokens = gpu::kWarpSize / kLanes;
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
  for (int mask = R::kLanes / 2; mask > 0; mask /= 2) {
    sum += gpu::shuffle_xor(sum, mask);
  }
  return sum;
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
  for (int mask = R::kLanes / 2; mask > 0; mask /= 2) {
    largest = fmaxf(largest, gpu::shuffle_xor(largest, mask));
  }
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

// What becomes of logits. Lanes whose token is not `present` compute, and write nothing.
struct Routes {
  float* probs_TE;
  float* gates_TK;
  std::int32_t* experts_TK;
  float* z_loss_T;
  const std::uint8_t* valid_T;
  float cap;
};

// The K largest of `probs`, descending, equal ones by index. NaN counts as -1, below every
// probability and above what is absent or taken: the experts of such a token are 0 .. K-1.
template <class R>
__device__ __forceinline__ void choose_experts(
    const Routes& out, const R& probs, std::int64_t t, bool present, const Shape& s) {
  constexpr float kNan = -1.0F;
  constexpr float kTaken = -2.0F;
  R left;
#pragma unroll
  for (int i = 0; i < R::kCount; ++i) {
    const float p = probs.values[i];
    left.values[i] = R::expert(i) >= s.E ? kTaken : p >= 0.0F ? p : kNan;
  }
  for (int k = 0; k < s.K; ++k) {
    float best = kTaken;
    float gate = 0.0F;
    int expert = kMaxExperts;
#pragma unroll
    for (int i = 0; i < R::kCount; ++i) {
      if (left.values[i] > best) {
        best = left.values[i];
        gate = probs.values[i];
        expert = R::expert(i);
      }
    }
    for (int mask = R::kLanes / 2; mask > 0; mask /= 2) {
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
    for (int i = 0; i < R::kCount; ++i) {
      if (R::expert(i) == expert) {
        left.values[i] = kTaken;
      }
    }
    if (R::lane() == 0 && present) {
      out.gates_TK[t * s.K + k] = gate;
      out.experts_TK[t * s.K + k] = expert;
    }
  }
}

template <class R>
__device__ __forceinline__ void route(
    const Routes& out, const R& logits, std::int64_t t, bool present, const Shape& s) {
  R prob = logits;
  const float lse = softmax(prob);
  if (out.cap > 0.0F) {
#pragma unroll
    for (int i = 0; i < R::kCount; ++i) {
      const bool absent = R::expert(i) >= s.E;
      prob.values[i] = absent ? -INFINITY : out.cap * tanhf(logits.values[i] / out.cap);
    }
    softmax(prob);
  }
  if (present) {
    store_row(out.probs_TE + t * s.E, prob, s.E);
    if (R::lane() == 0) {
      out.z_loss_T[t] = is_valid(out.valid_T, t) ? lse * lse : 0.0F;
    }
  }
  choose_experts(out, prob, t, present, s);
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
// after the other, which is all of its 24; an infinite one becomes NaN. terms[i] has both i-th.
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
                                      Routes routes,
                                      const T* __restrict__ x,
                                      const float* __restrict__ weight,
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
    const auto row = load_row<LongRow>(own_logits[j], s.E, -INFINITY);
    store_row(logits + (first + j) * s.E, row, s.E);
    route(routes, row, first + j, true, s);
  }
}

// The same on tensor cores, where x is bf16. The depth of a product may come in any order: of 32
// columns lane l loads eight, from 8 (l % 4) on, of tokens l / 4 and l / 4 + 8 in 16 and of the
// weights of expert l / 4, which are its parts of two products. Warps share the columns out and add
// up in shared memory. A sector of the weights is loaded in two halves, the second from L1.
// grid: T / kTileTokens, block: kTileThreads; D % 8 == 0
template <class R>
__global__ void __launch_bounds__(kTileThreads)
    router_forward_mma_kernel(float* __restrict__ logits,
                              Routes routes,
                              const bf16* __restrict__ x,
                              const float* __restrict__ weight,
                              Shape s) {
  constexpr int kTiles = kTileTokens / 16;
  constexpr int kLaneColumns = gpu::kVectorWidth<bf16>;
  constexpr int kStepColumns = 4 * kLaneColumns;
  alignas(16) __shared__ float shared_sums[kTileWarps][kTileTokens * kExperts];
  const int lane = gpu::lane_id();
  const int warp = gpu::warp_id();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTileTokens;
  const int last = static_cast<int>(s.T - first < kTileTokens ? s.T - first : kTileTokens) - 1;

  // Rows past the end repeat the last one.
  const bf16* rows[kTiles][2];
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    const int token = i * 8 + lane / 4;
    rows[i / 2][i % 2] = x + (first + (token < last ? token : last)) * s.D;
  }
  for (int group = 0; group < s.E; group += kExperts) {
    const int expert = group + lane / 4;
    float sums[kTiles][4] = {};  // with the weights' first terms
    float rest[kTiles][4] = {};  // with the others, 2^-8 as large and less
    for (int step = warp * kStepColumns; step < s.D; step += kTileWarps * kStepColumns) {
      // load
      const int d = step + lane % 4 * kLaneColumns;
      Words words[kTiles][2] = {};
      float w[kLaneColumns] = {};
      if (d < s.D) {
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          words[i / 2][i % 2] = load_words(rows[i / 2][i % 2] + d);
        }
        gpu::load_floats(weight + (expert < s.E ? expert : s.E - 1) * s.D + d, w);
      }
      // reduce
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const SplitPair low = split(w[4 * k], w[4 * k + 1]);
        const SplitPair high = split(w[4 * k + 2], w[4 * k + 3]);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const std::uint32_t tokens[4] = {words[i][0].values[2 * k],
                                           words[i][1].values[2 * k],
                                           words[i][0].values[2 * k + 1],
                                           words[i][1].values[2 * k + 1]};
          gpu::mma_m16n8k16(sums[i], tokens, low.terms[0], high.terms[0]);
#pragma unroll
          for (int term = 1; term < kTerms; ++term) {
            gpu::mma_m16n8k16(rest[i], tokens, low.terms[term], high.terms[term]);
          }
        }
      }
    }
    // A lane has two experts of each of its tokens.
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const int token = i * 8 + lane / 4;
      const int half = i % 2 * 2;
      const float pair[2] = {sums[i / 2][half] + rest[i / 2][half],
                             sums[i / 2][half + 1] + rest[i / 2][half + 1]};
      gpu::store_floats(&shared_sums[warp][token * kExperts + lane % 4 * 2], pair);
    }
    gpu::sync_threads();  // the sums of all warps are written
    static_assert(kTileThreads == kTileTokens * kExperts, "a sum a thread");
    const auto thread = static_cast<int>(threadIdx.x);
    float sum = 0.0F;
#pragma unroll
    for (int other = 0; other < kTileWarps; ++other) {
      sum += shared_sums[other][thread];
    }
    if (thread / kExperts <= last && group + thread % kExperts < s.E) {
      logits[(first + thread / kExperts) * s.E + group + thread % kExperts] = sum;
    }
    gpu::sync_threads();  // the group's logits are written, and its sums read
  }

  // write
  for (int from = warp * R::kTokens; from < kTileTokens; from += kTileWarps * R::kTokens) {
    const int token = from + R::token();
    const std::int64_t t = first + (token < last ? token : last);
    route(routes, load_row<R>(logits + t * s.E, s.E, -INFINITY), t, token <= last, s);
  }
}

// A block takes an expert of a sequence, a thread kSumTokens of its tokens at a time, all loads of
// which are under way together; the blocks of a sequence find each other's in L2. Tokens past the
// end repeat the last one and weigh nothing. Counts are exact in f32, as no sequence has 2^24
// tokens.
// grid: E * B, block: whole warps
__global__ void __launch_bounds__(kMostSumThreads)
    router_sums_kernel(std::int32_t* __restrict__ counts,
                       float* __restrict__ probs_sum,
                       std::int32_t* __restrict__ valid_tokens,
                       const float* __restrict__ probs,
                       const std::int32_t* __restrict__ experts,
                       const std::uint8_t* __restrict__ valid,
                       Shape s) {
  __shared__ float scratch[gpu::kWarpSize];
  const int expert = static_cast<int>(blockIdx.x) % s.E;
  const std::int64_t sequence = static_cast<int>(blockIdx.x) / s.E;
  const auto length = static_cast<int>(s.S);
  const auto stride = static_cast<int>(blockDim.x);
  float sum = 0.0F;
  float count = 0.0F;
  float num_valid = 0.0F;
  for (int first = static_cast<int>(threadIdx.x); first < length; first += kSumTokens * stride) {
    std::int64_t tokens[kSumTokens];
    float weights[kSumTokens];
    float own[kSumTokens];
#pragma unroll
    for (int j = 0; j < kSumTokens; ++j) {
      const int i = first + j * stride;
      tokens[j] = sequence * s.S + (i < length ? i : length - 1);
      weights[j] = i < length && is_valid(valid, tokens[j]) ? 1.0F : 0.0F;
      own[j] = probs[tokens[j] * s.E + expert];
    }
#pragma unroll 1
    for (int k = 0; k < s.K; ++k) {
#pragma unroll
      for (int j = 0; j < kSumTokens; ++j) {
        count += experts[tokens[j] * s.K + k] == expert ? weights[j] : 0.0F;
      }
    }
#pragma unroll
    for (int j = 0; j < kSumTokens; ++j) {
      sum += weights[j] > 0.0F ? own[j] : 0.0F;
      num_valid += weights[j];
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

// grid: T / (kWarps * R::kTokens), block: kWarpThreads
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
      (static_cast<std::int64_t>(blockIdx.x) * kWarps + gpu::warp_id()) * R::kTokens + R::token();
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
// 64 columns and 16 tokens lane l loads eight columns, from 8 (l / 4) on, of four tokens, from
// 4 (l % 4) on; halves of its words are its parts of x^T, and one part of dz serves all columns.
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

// Calls visit<R>() with the shortest row that holds E experts.
template <class Visit>
void visit_row(int E, const Visit& visit) {
  if (E <= ShortRow::kLanes) {
    visit.template operator()<ShortRow>();
  } else {
    visit.template operator()<LongRow>();
  }
}

template <class T, int kWidth>
void launch_forward(const RouterForward& op, const Shape& s, Stream stream) {
  const Routes routes = {.probs_TE = op.probs_TE.as<float>(),
                         .gates_TK = op.gates_TK.as<float>(),
                         .experts_TK = op.experts_TK.as<std::int32_t>(),
                         .z_loss_T = op.z_T.as<float>(),
                         .valid_T = valid_tokens(op.valid_T),
                         .cap = op.cap};
  if constexpr (std::is_same_v<T, bf16> && kWidth > 1) {
    visit_row(s.E, [&]<class R>() {
      launch(router_forward_mma_kernel<R>,
             choose_launch({.x = ceil_div(s.T, kTileTokens)}, kTileThreads, stream),
             op.logits_TE.as<float>(),
             routes,
             op.x_TD.as<T>(),
             op.weight_ED.as<float>(),
             s);
    });
  } else {
    launch(router_forward_kernel<T, kWidth>,
           choose_launch({.x = ceil_div(s.T, kWarps * kTokens)}, kWarpThreads, stream),
           op.logits_TE.as<float>(),
           routes,
           op.x_TD.as<T>(),
           op.weight_ED.as<float>(),
           s);
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
         choose_launch(
             {.x = s.E * s.B}, whole_warps(ceil_div(s.S, kSumTokens), kMostSumThreads), stream),
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
  visit_row(s.E, [&]<class R>() {
    launch(router_dlogits_kernel<R>,
           choose_launch({.x = ceil_div(s.T, kWarps * R::kTokens)}, kWarpThreads, stream),
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
