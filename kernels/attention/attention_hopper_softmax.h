// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <gpu_math.h>
#include <gpu_warp.h>

#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/attention_hopper.h"
#include "kernels/attention/attention_hopper_tile.h"
#include "kernels/device/exp2_polynomial.h"
#include "kernels/device/soft_cap.h"

// What a thread of Hopper's forward kernel does with the scores that it holds, between two
// products: the mask, the cap, the softmax. In registers alone; attention_hopper_forward.cu has all
// barriers.
namespace memphis::kernels::cuda::hopper_forward {

constexpr int kKeys = 128;  // of a tile

// What probabilities are relative to.
//   running  the largest logit so far; where it grows, results are rescaled. A row that sees one
//            key has a probability of exactly 1.
//   first    of a row's first tile: its largest logit, kept within what the cap's bounds allow
//   fixed    of its other tiles: what `first` chose
enum class Offset { running, first, fixed };

// A consumer thread's part of its item: of two rows (see gpu::wgmma), with i / 2 % 2 the row of
// element i.
template <bool kCapped>
struct SoftmaxRows {
  float score[kKeys / 2];
  float result[kHopperWidth / 2];
  std::uint32_t probability[kKeys / 16][4];
  float sum[2];
  float offset[2];  // in units of ln 2, as logits are
  float factor[2];  // without a cap logit / score; with one c = cap * tau * log2(e), its bound
  int first_key[2];
  int last_key[2];

  __device__ __forceinline__ void begin(const AttentionHead<bf16>& head, int first_query) {
    const AttentionArguments<bf16>& arguments = head.arguments;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // A row beyond the last query computes what that one does, and is not stored.
      const int t = std::min(row(first_query, half), head.num_tokens() - 1);
      sum[half] = 0.0F;
      offset[half] = -INFINITY;
      factor[half] = kLog2E * head.temperature(t) * (kCapped ? arguments.cap : arguments.scale);
      first_key[half] = head.first_key(t);
      last_key[half] = head.last_key(t);
    }
#pragma unroll
    for (int i = 0; i < kHopperWidth / 2; ++i) {
      result[i] = 0.0F;
    }
    // Not summed up, but inputs of the first wgmma all the same: they may not be undefined.
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      score[i] = 0.0F;
    }
  }

  static __device__ __forceinline__ int row(int first_query, int half) {
    const int warp = gpu::warp_id() % kWarpsOfGroup;
    return first_query + warp * 16 + gpu::lane_id() / 4 + half * 8;
  }

  // With a cap: scores become logits relative to `base`, in units of ln 2; see soft_cap.h. `slope`
  // is 2 log2(e) scale / cap.
  __device__ __forceinline__ void score_to_logit(float slope, const float (&base)[2]) {
#pragma unroll
    for (int i = 0; i < kKeys / 2; i += 4) {
      float r[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        r[j] = slope * score[i + j];
      }
      gpu::soft_cap_tails(r);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        score[i + j] = fmaf(r[j], -2.0F * factor[j / 2], factor[j / 2] - base[j / 2]);
      }
    }
  }

  // Whether each of the 64 elements may be seen, as bits. Without branches: they would keep the
  // compiler from running products meanwhile.
  __device__ __forceinline__ std::uint64_t allowed(const AttentionHead<bf16>& head,
                                                   int first) const {
    const int lane_column = first + gpu::lane_id() % 4 * 2;
    std::uint64_t bits = 0;
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int half = i / 2 % 2;
      const int s = lane_column + i / 4 * 8 + i % 2;
      const bool seen = (s >= first_key[half]) & (s <= last_key[half]);
      bits |= std::uint64_t{seen} << static_cast<unsigned>(i);
    }
    if (head.arguments.key_valid != nullptr) {
      const std::uint8_t* const valid = head.arguments.key_valid + head.key_token(0);
      const auto is_key = [&](int s) { return valid[std::min(s, head.num_keys() - 1)] != 0; };
      // A few at a time: registers are scarce here.
#pragma unroll 2
      for (int i = 0; i < kKeys / 2; i += 4) {
        const int s = lane_column + i / 4 * 8;
        const unsigned seen = (is_key(s) ? 0b0101U : 0U) | (is_key(s + 1) ? 0b1010U : 0U);
        bits &= ~(std::uint64_t{~seen & 0b1111U} << static_cast<unsigned>(i));
      }
    }
    return bits;
  }

  // The offset that a row keeps, given the largest logit of its first tile. Where it sees no key of
  // that tile (-inf), one near 0: far from its logits it would cost them bits.
  static __device__ __forceinline__ float fixed_offset(float largest, float c, int num_keys) {
    const float lowest = hopper_lowest_offset(c, log2f(static_cast<float>(num_keys)));
    const float wanted = largest == -INFINITY ? 0.0F : largest;
    return fmaxf(fminf(wanted, hopper_highest_offset(c)), lowest);
  }

  // Scores of the tile of keys from `first` on become probabilities, and are added to `sum`. With a
  // running offset `rescale` becomes what `result` is to be multiplied with; with a fixed one it is
  // not written.
  template <bool kMasked, Offset kOffset>
  __device__ __forceinline__ void softmax(const AttentionHead<bf16>& head,
                                          int first,
                                          float slope,
                                          float (&rescale)[2]) {
    const std::uint64_t bits = kMasked ? allowed(head, first) : 0;
    const auto hide = [&](int i, float value, float hidden) {
      return kMasked && (bits >> static_cast<unsigned>(i) & 1U) == 0 ? hidden : value;
    };
    if constexpr (kOffset == Offset::fixed) {
      score_to_logit(slope, offset);
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const float exponential =
            i % 4 == 0 ? gpu::exp2_polynomial(score[i]) : gpu::exp2_approx(score[i]);
        score[i] = hide(i, exponential, 0.0F);
        sum[i / 2 % 2] += score[i];
      }
    } else {
      // With a cap `score` holds logits from here on. Without one it keeps scores: a logit is that
      // times `unit`, above 0, which the largest one takes here and each in its exponent.
      if constexpr (kCapped) {
        const float zero[2] = {0.0F, 0.0F};
        score_to_logit(slope, zero);
      }
      const float unit[2] = {kCapped ? 1.0F : factor[0], kCapped ? 1.0F : factor[1]};
      float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        score[i] = hide(i, score[i], -INFINITY);
        largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], score[i]);
      }
      float base[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        largest[half] = fmaxf(offset[half], row_max(largest[half]) * unit[half]);
        if constexpr (kOffset == Offset::first) {
          largest[half] = fixed_offset(largest[half], factor[half], head.num_keys());
        }
        base[half] = largest[half] == -INFINITY ? 0.0F : largest[half];  // no key so far
        rescale[half] = gpu::exp2_approx(offset[half] - base[half]);
        offset[half] = largest[half];
        sum[half] *= rescale[half];
      }
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        score[i] = gpu::exp2_approx(fmaf(score[i], unit[i / 2 % 2], -base[i / 2 % 2]));
        sum[i / 2 % 2] += score[i];
      }
    }
  }

  // What softmax has left in `score`, rounded, becomes the left operand of p v: no product reads
  // the one before any more.
  template <Offset kOffset>
  __device__ __forceinline__ void take_probabilities(const float (&rescale)[2]) {
    if constexpr (kOffset == Offset::running) {
#pragma unroll
      for (int i = 0; i < kHopperWidth / 2; ++i) {
        result[i] *= rescale[i / 2 % 2];
      }
    }
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      probability[i / 4][i % 4] = gpu::pack_bf16(score[2 * i], score[2 * i + 1]);
    }
  }
};

}  // namespace memphis::kernels::cuda::hopper_forward
