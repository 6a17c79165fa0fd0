// SPDX-License-Identifier: Apache-2.0
//
// Forward. Where x is bf16 a block multiplies 64 tokens on tensor cores, as the weights, which are
// wider than a token's row, are then read once for 64; otherwise a warp takes four on its threads.
// Then eight lanes hold a token's logits, or a warp where there are more, for softmax and top-K.
// Bound by memory: x is read once. At 4.2 TB/s an SM of an H200 has time for 113 instructions of a
// thread for each 16 bytes; the loop over bf16 has 35.
#include "kernels/router/router.h"

#include <cmath>
#include <cstdint>
#include <type_traits>

#include <gpu_mma.h>

#include "kernels/router/router_gpu.h"
#include "kernels/visit.h"
#include "kernels/whole_warps.h"

namespace memphis::kernels::cuda {
namespace {

using namespace router;

constexpr int kTokens = 4;       // of a warp in forward: 32 accumulators a thread
constexpr int kTileTokens = 64;  // of a block whose warps share columns out: an SM's at T = 8192
constexpr int kTileWarps = 16;   // with 4 KB of loads in flight each
constexpr int kTileThreads = kTileWarps * gpu::kWarpSize;
constexpr int kSumTokens = 8;         // of a thread that sums over a sequence, at a time
constexpr int kMaxSumThreads = 1024;  // of its block, which then takes 8192 at a time

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

// The same on tensor cores, where x is bf16. Warps share the columns out and add up in shared
// memory.
//
// The depth of a product may come in any order, if it is the same in both operands: one that gives
// lanes whole vectors. Of 32 columns, lane 4 r + c loads the eight from 8 c on, of tokens r and
// r + 8 of each 16 and of the weights of expert r, which are its parts of two products:
//
//   depth of the mma     columns from 8 c on: product 0    product 1
//   2 c and the next                          0, 1         4, 5
//   2 c + 8 and the next                      2, 3         6, 7
//
// A sector of the weights is loaded in two halves, the second from L1.
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
      gpu::Packed<bf16> words[kTiles][2] = {};
      float w[kLaneColumns] = {};
      if (d < s.D) {
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          words[i / 2][i % 2] = gpu::load_packed(rows[i / 2][i % 2] + d);
        }
        gpu::load_floats(weight + (expert < s.E ? expert : s.E - 1) * s.D + d, w);
      }
      // reduce
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const gpu::SplitPair low = gpu::split_bf16(w[4 * k], w[4 * k + 1]);
        const gpu::SplitPair high = gpu::split_bf16(w[4 * k + 2], w[4 * k + 3]);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const std::uint32_t tokens[4] = {words[i][0].words[2 * k],
                                           words[i][1].words[2 * k],
                                           words[i][0].words[2 * k + 1],
                                           words[i][1].words[2 * k + 1]};
          gpu::mma_m16n8k16(sums[i], tokens, low.terms[0], high.terms[0]);
#pragma unroll
          for (int term = 1; term < gpu::kSplitTerms; ++term) {
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
  for (int from = warp * R::kRows; from < kTileTokens; from += kTileWarps * R::kRows) {
    const int token = from + R::token();
    const std::int64_t t = first + (token < last ? token : last);
    route(routes, load_row<R>(logits + t * s.E, s.E, -INFINITY), t, token <= last, s);
  }
}

// A block takes an expert of a sequence, a thread kSumTokens of its tokens at a time, all loads of
// which are under way together; the blocks of a sequence find each other's in L2. Tokens past the
// end repeat the last one and weigh nothing. Counts are exact in f32: a sequence has 2^24 tokens at
// most.
// grid: E * B, block: whole warps
__global__ void __launch_bounds__(kMaxSumThreads)
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
             {.x = s.E * s.B}, whole_warps(ceil_div(s.S, kSumTokens), kMaxSumThreads), stream),
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

}  // namespace memphis::kernels::cuda
