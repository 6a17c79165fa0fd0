// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"

namespace memphis::kernels {

// The sizes of one attention call, and where a head lies in a token of qkv: N query heads, then G
// key heads, then G value heads.
struct AttentionShape {
  std::int64_t B = 0;
  std::int64_t S = 0;
  std::int64_t N = 0;
  std::int64_t G = 0;
  std::int64_t H = 0;

  constexpr std::int64_t group() const { return N / G; }  // query heads of a key/value head
  constexpr std::int64_t token_stride() const { return (N + 2 * G) * H; }
  constexpr std::int64_t key_offset(std::int64_t g) const { return (N + g) * H; }
  constexpr std::int64_t value_offset(std::int64_t g) const { return (N + G + g) * H; }
};

inline AttentionShape attention_shape(const TensorView& lse_BNS, const TensorView& qkv_TCH) {
  return {.B = lse_BNS.dim(0),
          .S = lse_BNS.dim(2),
          .N = lse_BNS.dim(1),
          .G = (qkv_TCH.dim(1) - lse_BNS.dim(1)) / 2,
          .H = qkv_TCH.dim(2)};
}

}  // namespace memphis::kernels
