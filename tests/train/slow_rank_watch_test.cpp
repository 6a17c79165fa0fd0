// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/slow_rank_watch.h"

#include <vector>

#include <gtest/gtest.h>

namespace memphis {
namespace {

TEST(SlowRankWatch, NamesARankThatIsSlowThreeTimesInARowOnce) {
  const std::vector<double> well = {1.00, 1.01, 0.99, 1.02};
  const std::vector<double> sick = {1.00, 1.01, 1.90, 1.02};
  SlowRankWatch watch;
  EXPECT_TRUE(watch.observe(sick).empty());
  EXPECT_TRUE(watch.observe(sick).empty());
  EXPECT_TRUE(watch.observe(well).empty()) << "a swing is none";
  EXPECT_TRUE(watch.observe(sick).empty());
  EXPECT_TRUE(watch.observe(sick).empty());
  const std::vector<SlowRankWatch::News> news = watch.observe(sick);
  ASSERT_EQ(news.size(), 1U);
  EXPECT_EQ(news[0].rank, 2);
  EXPECT_TRUE(news[0].slow);
  EXPECT_DOUBLE_EQ(news[0].seconds, 1.9);
  EXPECT_DOUBLE_EQ(news[0].spread.median, 1.015);
  EXPECT_TRUE(watch.observe(sick).empty()) << "it is said once";
  const std::vector<SlowRankWatch::News> again = watch.observe(well);
  ASSERT_EQ(again.size(), 1U);
  EXPECT_FALSE(again[0].slow);
  EXPECT_TRUE(watch.observe(well).empty());
}

}  // namespace
}  // namespace memphis
