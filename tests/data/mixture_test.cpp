// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/mixture.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>

#include <gtest/gtest.h>

namespace memphis {
namespace {

TEST(Mixture, DecimalsAreExact) {
  const std::vector<double> weights = {0.7, 0.2, 0.1};
  const Mixture mixture(weights);
  EXPECT_EQ(mixture.period(), 10U);
  EXPECT_EQ(mixture.parts(0), 7U);
  EXPECT_EQ(mixture.parts(1), 2U);
  EXPECT_EQ(mixture.parts(2), 1U);
  EXPECT_EQ(Mixture(std::vector<double>{3, 5}).period(), 8U);
  EXPECT_EQ(Mixture(std::vector<double>{0.333, 0.667}).period(), 1000U);
  EXPECT_EQ(Mixture(std::vector<double>{42}).period(), 1U);
}

// No prefix is off by a sample, so no window by two, and one of a period by none.
TEST(Mixture, EveryPrefixHasEachSourcesShareToWithinLessThanASample) {
  std::mt19937 random(1);
  std::vector<std::vector<double>> mixes = {
      {1}, {1, 1}, {0.7, 0.2, 0.1}, {0.618034, 1}, {1e-6, 1, 1}};
  for (int round = 0; round < 30; ++round) {
    std::vector<double> weights(2 + random() % 12);
    for (double& weight : weights) {
      weight = 1 + static_cast<double>(random() % 40);
    }
    mixes.push_back(weights);
  }
  for (const std::vector<double>& weights : mixes) {
    const Mixture mixture(weights);
    const std::uint64_t period = mixture.period();
    ASSERT_LE(period, Mixture::kMaxPeriod);
    std::vector<std::uint64_t> counts(weights.size());
    for (std::uint64_t n = 0; n < std::min<std::uint64_t>(3 * period, 70000); ++n) {
      const Mixture::Place place = mixture.place(n);
      ASSERT_EQ(place.index, counts[place.source]) << "samples of a source come one after another";
      ++counts[place.source];
      for (std::size_t i = 0; i < weights.size(); ++i) {
        // In whole numbers: |count * period - parts * n| < period.
        const auto have = static_cast<std::int64_t>(counts[i] * period);
        const auto owed = static_cast<std::int64_t>(mixture.parts(i) * (n + 1));
        ASSERT_LT(std::abs(have - owed), static_cast<std::int64_t>(period)) << n << " " << i;
      }
    }
  }
}

TEST(Mixture, CountsAndPlacesAgreeFarOut) {
  const Mixture mixture(std::vector<double>{0.31, 0.5, 0.19});
  const std::uint64_t far = (std::uint64_t{1} << 50U) + 77;
  for (std::uint64_t n = far; n < far + 200; ++n) {
    const Mixture::Place place = mixture.place(n);
    EXPECT_EQ(mixture.count(place.source, n), place.index);
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      sum += mixture.count(i, n);
    }
    EXPECT_EQ(sum, n);
  }
}

TEST(Mixture, SharesThatNoPeriodHasAreNearestAndNoneIsLeftOut) {
  const Mixture mixture(std::vector<double>{1, std::sqrt(2.0), 1e-9});
  EXPECT_EQ(mixture.period(), Mixture::kMaxPeriod);
  EXPECT_EQ(mixture.parts(2), 1U);
  EXPECT_NEAR(static_cast<double>(mixture.parts(1)) / static_cast<double>(mixture.parts(0)),
              std::sqrt(2.0),
              4.0 / 27000);  // a part or two of the fewest, of about 27,000
}

}  // namespace
}  // namespace memphis
