// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/rounding.h"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace memphis {
namespace {

// Numbers between two bf16, on either side and half way; the largest, which rounds to infinity, and
// the smallest.
std::vector<float> numbers() {
  std::vector<float> exact;
  for (std::uint32_t upper = 0; upper < 0x10000U; upper += 37) {
    for (const std::uint32_t lower : {0x0000U, 0x0001U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
      exact.push_back(std::bit_cast<float>((upper << 16U) | lower));
    }
  }
  exact.insert(exact.end(),
               {std::numeric_limits<float>::max(),
                std::numeric_limits<float>::denorm_min(),
                std::numeric_limits<float>::infinity(),
                -0.0F});
  return exact;
}

TEST(Rounding, IsThatOfBf16) {
  const std::vector<float> exact = numbers();
  const std::vector<bf16> values(exact.begin(), exact.end());
  EXPECT_TRUE(are_rounded(values, exact));
  EXPECT_TRUE(are_rounded({}, {}));
}

TEST(Rounding, OneBitIsSeenWhereverItIs) {
  const std::vector<float> exact(101, 1.5F);
  for (std::size_t at = 0; at < exact.size(); ++at) {
    for (unsigned bit = 0; bit < 16; ++bit) {
      std::vector<bf16> values(exact.begin(), exact.end());
      values[at].bits = static_cast<std::uint16_t>(values[at].bits ^ (1U << bit));
      EXPECT_FALSE(are_rounded(values, exact)) << "bit " << bit << " of element " << at;
    }
  }
}

TEST(Rounding, WhatIsNotANumberHasManyForms) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(are_rounded(std::vector<bf16>{bf16(2.0F), bf16::from_bits(0xFFFF)},
                          std::vector<float>{nan, -nan}));
  EXPECT_FALSE(are_rounded(std::vector<bf16>{bf16(nan)}, std::vector<float>{2.0F}));
}

}  // namespace
}  // namespace memphis
