// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/dtype.h"

#include <bit>
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace memphis {
namespace {

std::uint16_t rounded(std::uint32_t float_bits) {
  return bf16(std::bit_cast<float>(float_bits)).bits;
}

TEST(Bf16, EveryPatternComesBack) {
  for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
    const bf16 value = bf16::from_bits(static_cast<std::uint16_t>(bits));
    const bf16 again(static_cast<float>(value));
    if (std::isnan(static_cast<float>(value))) {
      EXPECT_TRUE(std::isnan(static_cast<float>(again))) << bits;
      EXPECT_EQ(again.bits & 0x8000U, bits & 0x8000U) << "the sign of a NaN is kept";
    } else {
      EXPECT_EQ(again.bits, bits);
    }
  }
}

// Against the definition: the nearer of the two neighbours, and the even one of two equally near.
// Covers every exponent, normal and subnormal, up to where the upper neighbour is infinity.
TEST(Bf16, RoundsToTheNearestAndTiesToEven) {
  for (std::uint32_t upper = 0; upper < 0x7F80U; ++upper) {
    const std::uint32_t base = upper << 16U;
    const auto next = static_cast<std::uint16_t>(upper + 1);
    const auto here = static_cast<std::uint16_t>(upper);
    EXPECT_EQ(rounded(base | 0x0001U), here);
    EXPECT_EQ(rounded(base | 0x7FFFU), here);
    EXPECT_EQ(rounded(base | 0x8000U), upper % 2 == 0 ? here : next);
    EXPECT_EQ(rounded(base | 0x8001U), next);
    EXPECT_EQ(rounded(base | 0xFFFFU), next);
    EXPECT_EQ(rounded(0x80000000U | base | 0x8001U), next | 0x8000U);
  }
}

TEST(Bf16, KeepsInfinityAndOverflowsToIt) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(bf16(infinity).bits, 0x7F80U);
  EXPECT_EQ(bf16(-infinity).bits, 0xFF80U);
  EXPECT_EQ(bf16(std::numeric_limits<float>::max()).bits, 0x7F80U);
  EXPECT_EQ(bf16(std::bit_cast<float>(0x7F7F7FFFU)).bits, 0x7F7FU) << "below half way to 2^128";
}

TEST(Bf16, NanNeverBecomesInfinity) {
  // The payloads that truncation and rounding lose: all in the lower half, and all ones.
  for (const std::uint32_t bits :
       {0x7F800001U, 0x7F80FFFFU, 0x7FFFFFFFU, 0xFF800001U, 0xFFFFFFFFU}) {
    EXPECT_TRUE(std::isnan(static_cast<float>(bf16(std::bit_cast<float>(bits)))))
        << std::hex << bits;
  }
}

TEST(Bf16, KeepsSignedZeroAndSubnormals) {
  EXPECT_EQ(bf16(0.0F).bits, 0U);
  EXPECT_EQ(bf16(-0.0F).bits, 0x8000U);
  const float smallest = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(bf16(smallest).bits, 0U) << "less than half of the smallest bf16";
  EXPECT_EQ(bf16(-smallest).bits, 0x8000U);
  EXPECT_EQ(static_cast<float>(bf16::from_bits(1)), 0x1p-133F);
}

template <class T>
void expect_described_as(DType dtype) {
  EXPECT_EQ(dtype_of<T>(), dtype);
  EXPECT_EQ(size_of(dtype), sizeof(T));
}

TEST(DType, SizesAreThoseOfTheTypes) {
  expect_described_as<double>(DType::f64);
  expect_described_as<float>(DType::f32);
  expect_described_as<bf16>(DType::bf16);
  expect_described_as<std::int64_t>(DType::i64);
  expect_described_as<std::int32_t>(DType::i32);
  expect_described_as<std::uint8_t>(DType::u8);
}

TEST(DType, AccumulatesInF32OrBetter) {
  EXPECT_EQ(accumulation_dtype(DType::bf16), DType::f32);
  EXPECT_EQ(accumulation_dtype(DType::f32), DType::f32);
  EXPECT_EQ(accumulation_dtype(DType::f64), DType::f64);
  EXPECT_EQ(dtype_of<Accumulator<bf16>>(), accumulation_dtype(DType::bf16));
  EXPECT_EQ(dtype_of<Accumulator<double>>(), accumulation_dtype(DType::f64));
}

}  // namespace
}  // namespace memphis
