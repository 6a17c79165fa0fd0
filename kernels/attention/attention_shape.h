// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"

namespace memphis::kernels {

// The sizes of one attention call.
struct AttentionShape {
  std::int64_t B = 0;
  std::int64_t S = 0;         // queries of a sequence
  std::int64_t num_keys = 0;  // of a sequence
  std::int64_t N = 0;
  std::int64_t G = 0;
  std::int64_t H = 0;

  constexpr std::int64_t group() const { return N / G; }  // query heads of a key/value head
};

// Of operands that have been checked.
template <class Operands>
AttentionShape attention_shape(const Operands& op) {
  const std::int64_t B = op.lse_BNS.dim(0);
  return {.B = B,
          .S = op.lse_BNS.dim(2),
          .num_keys = B == 0 ? 0 : op.k_UGH.num_tokens() / B,
          .N = op.lse_BNS.dim(1),
          .G = op.k_UGH.num_heads,
          .H = op.q_TNH.width()};
}

}  // namespace memphis::kernels
