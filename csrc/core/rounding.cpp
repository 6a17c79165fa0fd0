// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/rounding.h"

#include <bit>
#include <cstddef>
#include <cstdint>

#include "csrc/core/error.h"

namespace memphis {

bool are_rounded(std::span<const bf16> values, std::span<const float> exact) {
  require(values.size() == exact.size(), "each value has the one that it rounds beside it");
  // No way out before the end, so that the compiler takes many at a time.
  std::uint32_t different = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(exact[i]) & 0x7FFFFFFFU;
    const std::uint32_t is_number = magnitude <= 0x7F800000U ? ~0U : 0U;
    different |= static_cast<std::uint32_t>(bf16(exact[i]).bits ^ values[i].bits) & is_number;
  }
  return different == 0;
}

}  // namespace memphis
