// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/save_times.h"

#include <cmath>

#include <gtest/gtest.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

TEST(SaveInterval, IsYoungsForWhatASaveHasCost) {
  SaveInterval interval(7200);
  EXPECT_TRUE(interval.due(0)) << "which measures what a save costs";
  interval.begun(96);
  EXPECT_FALSE(interval.due(1e6)) << "the first is under way";
  interval.saved(4, 4);
  EXPECT_DOUBLE_EQ(interval.seconds(), std::sqrt(2 * 7200 * 4.0));  // 240 s
  EXPECT_FALSE(interval.due(335.9));
  EXPECT_TRUE(interval.due(336));
  interval.begun(336);
  interval.saved(12, 12);  // the disk has become slower
  EXPECT_DOUBLE_EQ(interval.seconds(), std::sqrt(2 * 7200 * 8.0));
  EXPECT_FALSE(interval.due(336 + interval.seconds() - 0.1));
  EXPECT_TRUE(interval.due(336 + interval.seconds()));
}

TEST(SaveInterval, CountsLittleOfWhatIsWrittenMeanwhile) {
  SaveInterval interval(7200);
  interval.saved(1, 101);
  EXPECT_DOUBLE_EQ(interval.seconds(), std::sqrt(2 * 7200 * (1 + 3.0)));
}

TEST(SaveInterval, IsNoShorterThanASave) {
  SaveInterval interval(1);
  interval.saved(0, 10);
  EXPECT_DOUBLE_EQ(interval.seconds(), 10);
}

TEST(SaveInterval, TriesAgainUntilOneHasWorked) {
  SaveInterval interval(7200);
  interval.begun(5);
  interval.failed();
  EXPECT_TRUE(interval.due(6));
  interval.begun(6);
  interval.saved(4, 4);
  interval.begun(300);
  interval.failed();
  EXPECT_FALSE(interval.due(301));
}

TEST(TimeEnds, AreTheEarlierOfTheConfigsAndTheSchedulers) {
  constexpr double kUnix = 1.7e9;
  const auto end = [](std::int64_t limit, const char* job_end) {
    return end_of_time(limit, /*started=*/400, job_end, kUnix, /*now=*/500);
  };
  EXPECT_FALSE(end(-1, ""));
  EXPECT_FALSE(end(0, ""));
  EXPECT_FALSE(end(0, "1700000060")) << "none is none";
  EXPECT_DOUBLE_EQ(end(3600, "")->at, 4000);
  EXPECT_EQ(end(3600, "")->why, "run.time_limit");
  EXPECT_DOUBLE_EQ(end(-1, "1700000060")->at, 560);
  EXPECT_NE(end(-1, "1700000060")->why.find("SLURM_JOB_END_TIME"), std::string::npos);
  EXPECT_DOUBLE_EQ(end(3600, "1700000060")->at, 560);
  EXPECT_DOUBLE_EQ(end(100, "1700000060")->at, 500);
  EXPECT_THROW(end(-1, "soon"), ConfigError);
  EXPECT_THROW(end(-1, "17e8"), ConfigError);
}

TEST(TimeLimit, LeavesTimeForAStepAndASave) {
  TimeLimit limit({.at = 10000, .why = ""}, /*now=*/0, /*save_seconds=*/500);
  limit.stepped(7);
  limit.stepped(3);
  const double end_seconds = limit.needed_seconds() - 7 - 2 * 500;
  EXPECT_GT(end_seconds, 0);
  limit.saved(20);
  EXPECT_DOUBLE_EQ(limit.needed_seconds(), 7 + 2 * 20 + end_seconds)
      << "measured, no longer guessed";
  limit.saved(30);
  limit.saved(10);
  EXPECT_DOUBLE_EQ(limit.needed_seconds(), 7 + 2 * 30 + end_seconds) << "the longest";
  EXPECT_FALSE(limit.reached(10000 - limit.needed_seconds() - 0.1));
  EXPECT_TRUE(limit.reached(10000 - limit.needed_seconds()));
}

TEST(TimeLimit, SpendsHalfOfAShortTimeOnSteps) {
  TimeLimit limit({.at = 20, .why = ""}, 0, 500);
  EXPECT_FALSE(limit.reached(9.9));
  EXPECT_TRUE(limit.reached(10));
  EXPECT_TRUE(TimeLimit({.at = 5, .why = ""}, 20, 1).reached(20)) << "begun after its end";
}

}  // namespace
}  // namespace memphis
