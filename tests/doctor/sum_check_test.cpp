// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/sum_check.h"

#include <cstddef>
#include <vector>

#include <gtest/gtest.h>

namespace memphis::doctor {
namespace {

constexpr int kModulus = 1000003;
constexpr std::size_t kCount = 5000;
// Numbers go over the modulus at an index in the middle.
constexpr int kRoundThatWraps = kModulus - 3000;

// What the ranks bring, added one by one as int32 wraps.
std::vector<std::int32_t> add_up(int num_ranks, int round) {
  std::vector<std::uint32_t> sums(kCount);
  std::vector<std::int32_t> values(kCount);
  for (int rank = 0; rank < num_ranks; ++rank) {
    fill_for_sum(values, rank, round);
    for (std::size_t i = 0; i < kCount; ++i) {
      sums[i] += static_cast<std::uint32_t>(values[i]);
    }
  }
  return {sums.begin(), sums.end()};
}

TEST(SumCheck, HasTheSumsThatOneByOneAddingHas) {
  // Sums of the last are beyond 2^31.
  for (const int num_ranks : {1, 2, 3, 16, 2200}) {
    for (const int round : {0, 2, kRoundThatWraps}) {
      const std::vector<std::int32_t> sums = add_up(num_ranks, round);
      EXPECT_EQ(first_wrong_sum(sums, num_ranks, round), std::nullopt)
          << num_ranks << " ranks, round " << round;
    }
  }
}

TEST(SumCheck, FindsTheOneThatIsWrong) {
  for (const std::size_t index : {std::size_t{0}, kCount / 2, kCount - 1}) {
    for (const int bit : {0, 20, 31}) {
      std::vector<std::int32_t> sums = add_up(3, kRoundThatWraps);
      sums[index] ^= static_cast<std::int32_t>(std::uint32_t{1} << bit);
      EXPECT_EQ(first_wrong_sum(sums, 3, kRoundThatWraps), index) << "bit " << bit;
    }
  }
}

TEST(SumCheck, MissesNoRankAndTakesNoOtherRound) {
  EXPECT_EQ(first_wrong_sum(add_up(3, 0), 4, 0), 0U);
  EXPECT_EQ(first_wrong_sum(add_up(3, 0), 3, 1), 0U);
}

}  // namespace
}  // namespace memphis::doctor
