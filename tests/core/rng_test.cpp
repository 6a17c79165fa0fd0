// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/rng.h"

#include <cmath>
#include <set>

#include <gtest/gtest.h>

namespace memphis {
namespace {

using Counter = std::array<std::uint32_t, 4>;

// The vectors of Random123's kat_vectors for philox4x32-10.
TEST(Philox, HasTheKnownAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}),
            (Counter{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}));
  constexpr std::uint32_t kOnes = 0xFFFFFFFF;
  EXPECT_EQ(philox({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Counter{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}));
  EXPECT_EQ(philox({0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}, {0xA4093822, 0x299F31D0}),
            (Counter{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}));
}

// Published with the function (Fowler, Noll, Vo); the order of data and initial values rest on it.
TEST(Fnv1a, HasTheKnownAnswers) {
  EXPECT_EQ(fnv1a(""), 0xCBF29CE484222325U);
  EXPECT_EQ(fnv1a("a"), 0xAF63DC4C8601EC8CU);
  EXPECT_EQ(fnv1a("foobar"), 0x85944171F73967E8U);
}

TEST(CounterRng, SeedNameAndIndexAllMatter) {
  const std::uint64_t far = std::uint64_t{1} << 32U;
  std::set<std::uint64_t> words;
  for (const std::uint64_t seed : {std::uint64_t{1}, std::uint64_t{2}, far + 1}) {
    for (const char* name : {"a", "b"}) {
      for (const std::uint64_t index : {std::uint64_t{0}, std::uint64_t{1}, far}) {
        words.insert(CounterRng(seed, name).word64(index));
      }
    }
  }
  EXPECT_EQ(words.size(), 18U);
  EXPECT_EQ(CounterRng(3, "a").word64(7), CounterRng(3, "a").word64(7));
}

// A mean over n draws is off by less than 5 standard errors, sqrt(var / n), with odds of 6e-7; the
// seed is fixed, so it is or it is not.
constexpr int kDraws = 200000;
double five_errors(double variance) {
  return 5 * std::sqrt(variance / kDraws);
}

TEST(CounterRng, UniformHasItsMoments) {
  const CounterRng rng(11, "uniform");
  double sum = 0;
  double sum_of_squares = 0;
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    const double value = rng.uniform(i);
    ASSERT_GE(value, 0);
    ASSERT_LT(value, 1);
    sum += value;
    sum_of_squares += value * value;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, five_errors(1.0 / 12));
  EXPECT_NEAR(sum_of_squares / kDraws, 1.0 / 3, five_errors(1.0 / 5 - 1.0 / 9));
}

TEST(CounterRng, NormalHasItsMoments) {
  const CounterRng rng(11, "normal");
  std::array<double, 5> moments{};
  double lag = 0;
  int num_beyond_two = 0;
  double previous = 0;
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    const double value = rng.normal(i);
    double power = 1;
    for (double& moment : moments) {
      moment += power / kDraws;
      power *= value;
    }
    lag += value * previous / kDraws;
    previous = value;
    num_beyond_two += std::abs(value) > 2 ? 1 : 0;
  }
  // E[x^2k] = (2k - 1)!!, and the variance of x^k is E[x^2k] - E[x^k]^2.
  EXPECT_NEAR(moments[1], 0, five_errors(1));
  EXPECT_NEAR(moments[2], 1, five_errors(3 - 1));
  EXPECT_NEAR(moments[3], 0, five_errors(15));
  EXPECT_NEAR(moments[4], 3, five_errors(105 - 9));
  EXPECT_NEAR(lag, 0, five_errors(1)) << "neighbours are correlated";
  const double tail = std::erfc(std::sqrt(2.0));
  EXPECT_NEAR(static_cast<double>(num_beyond_two) / kDraws, tail, five_errors(tail * (1 - tail)));
}

}  // namespace
}  // namespace memphis
