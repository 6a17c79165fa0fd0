// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/progress.h"

#include <string>

#include <gtest/gtest.h>

namespace memphis::test {
namespace {

TEST(Progress, SaysHowFarItIsAndHowLongItTakes) {
  const ProgressState state{.what = "export",
                            .total = 40,
                            .unit = "tensors",
                            .begun = 0,
                            .done = 10,
                            .note = "layers.3",
                            .seconds = 20};
  EXPECT_EQ(progress_text(state, 200),
            "export [#####...............] 10/40 tensors  1m00s left  layers.3");
  EXPECT_EQ(progress_text(state, 0), "export: 10/40 tensors (25 %)  1m00s left  layers.3");
}

// What was done before this process is no measure of its speed.
TEST(Progress, CountsTheTimeOfWhatItDidItself) {
  const ProgressState state{
      .what = "train", .total = 100, .unit = "steps", .begun = 80, .done = 90, .seconds = 30};
  EXPECT_EQ(progress_text(state, 0), "train: 90/100 steps (90 %)  30s left");
}

TEST(Progress, StandsOddNumbers) {
  EXPECT_EQ(progress_text({.what = "read", .unit = "files", .done = 7, .seconds = 3}, 0),
            "read: 7 files  3s");
  const ProgressState more{.what = "read", .total = 4, .unit = "files", .done = 7, .seconds = 3};
  EXPECT_EQ(progress_text(more, 100), "read [####################] 7/4 files  3s");
  const ProgressState none{.what = "read", .total = 4, .unit = "files"};
  EXPECT_EQ(progress_text(none, 100), "read [....................] 0/4 files  0s");
}

TEST(Progress, IsCutToTheTerminalBetweenCharacters) {
  const ProgressState state{.what = "a\u00e4\u00e4", .total = 0, .unit = "x"};
  EXPECT_EQ(progress_text(state, 2), "a\u00e4");
}

TEST(Progress, NamesDurations) {
  EXPECT_EQ(short_duration(59.4), "59s");
  EXPECT_EQ(short_duration(185), "3m05s");
  EXPECT_EQ(short_duration(7620), "2h07m");
  EXPECT_EQ(short_duration(4 * 86400 + 3 * 3600), "4d03h");
}

}  // namespace
}  // namespace memphis::test
