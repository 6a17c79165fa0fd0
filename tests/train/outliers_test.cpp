// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/outliers.h"

#include <vector>

#include <gtest/gtest.h>

namespace memphis {
namespace {

using Found = std::vector<std::size_t>;

TEST(Outliers, AreFarFromTheMedianByTheDeviationOfTheRest) {
  const std::vector<double> values = {10, 10.1, 9.9, 14, 10.05, 6};
  EXPECT_NEAR(spread_of(values).median, 10.025, 1e-12);
  EXPECT_EQ(outliers(values, Side::above, 0.1), Found{3});
  EXPECT_EQ(outliers(values, Side::below, 0.1), Found{5});
}

TEST(Outliers, AreNoneWhereAllDiffer) {
  const std::vector<double> values = {7, 9, 10, 11, 13};
  EXPECT_TRUE(outliers(values, Side::above, 0.1).empty());
  EXPECT_DOUBLE_EQ(spread_of(values).deviation, 1.4826);
}

TEST(Outliers, AreWorthAWord) {
  const std::vector<double> values = {10, 10, 10, 10.9};
  EXPECT_TRUE(outliers(values, Side::above, 0.1).empty());
  EXPECT_EQ(outliers(values, Side::above, 0.05), Found{3});
}

TEST(Outliers, NeedAThirdToTellWhichOfTwo) {
  EXPECT_TRUE(outliers(std::vector<double>{1, 100}, Side::above, 0.1).empty());
  EXPECT_EQ(outliers(std::vector<double>{1, 100, 1}, Side::above, 0.1), Found{1});
  EXPECT_TRUE(outliers({}, Side::above, 0.1).empty());
}

}  // namespace
}  // namespace memphis
