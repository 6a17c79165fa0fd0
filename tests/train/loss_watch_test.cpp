// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/loss_watch.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace memphis {
namespace {

using News = LossWatch::News;

constexpr std::int64_t kVocab = 256;
const double kChance = std::log(256.0);

// So many steps with one loss.
News observe(LossWatch& watch, double loss, int num_steps, std::int64_t first_step = 1) {
  News last = News::none;
  for (int i = 0; i < num_steps; ++i) {
    last = watch.observe(first_step + i, loss);
  }
  return last;
}

TEST(LossWatch, AnUntrainedModelMayBeWorseThanAGuess) {
  LossWatch watch(kVocab, {});
  EXPECT_EQ(observe(watch, 3 * kChance, 20), News::none);
  EXPECT_EQ(observe(watch, 5.9 * kChance, 1), News::none);
  EXPECT_EQ(observe(watch, 6.1 * kChance, 1), News::exploded);
}

TEST(LossWatch, ATrainedModelHasExplodedOnceItIsWorseThanAGuess) {
  LossWatch watch(kVocab, {});
  observe(watch, kChance, 1);
  EXPECT_EQ(watch.limit(), 2 * kChance);
  observe(watch, 1.5, 16);
  EXPECT_EQ(watch.state().reference, 1.5);
  EXPECT_EQ(observe(watch, 5.5, 5), News::none);
  EXPECT_EQ(observe(watch, 5.6, 1, 23), News::exploded);
  EXPECT_EQ(watch.state().exploded_at, 23);
  EXPECT_EQ(observe(watch, 1e8, 3, 24), News::none) << "it is said once";
  EXPECT_EQ(watch.state().exploded_at, 23);
}

// An odd batch of a run that has not learned yet would make its usual loss look like an explosion.
TEST(LossWatch, OneLowLossIsNoLevel) {
  LossWatch watch(kVocab, {});
  observe(watch, 5.8, 20);
  observe(watch, 0.1, 7);
  EXPECT_EQ(observe(watch, 5.8, 20), News::none);
  EXPECT_FALSE(watch.exploded());
}

TEST(LossWatch, IsOverAfterACalm) {
  LossWatch watch(kVocab, {.reference = 2, .exploded_at = 0});
  EXPECT_EQ(observe(watch, 100, 1), News::exploded);
  EXPECT_EQ(observe(watch, 3, 7), News::none);
  EXPECT_EQ(observe(watch, 100, 1), News::none);
  EXPECT_EQ(observe(watch, 3, 7), News::none);
  EXPECT_TRUE(watch.exploded());
  EXPECT_EQ(observe(watch, 3, 1), News::recovered);
  EXPECT_FALSE(watch.exploded());
  EXPECT_EQ(watch.state().reference, 2) << "a level that was held stays";
}

TEST(LossWatch, GoesOnWithWhatACheckpointKept) {
  LossWatch before(kVocab, {});
  observe(before, 2, 30);
  LossWatch after(kVocab, before.state());
  EXPECT_EQ(after.limit(), before.limit());
  EXPECT_EQ(observe(after, 6, 1, 31), News::exploded);
  EXPECT_TRUE(LossWatch(kVocab, after.state()).exploded());
}

// Stopped after any step, also before there were losses for a level, within a calm and after one.
TEST(LossWatch, AStopAtAnyStepChangesNothing) {
  const auto loss_of = [](int step) {
    const double odd = 0.3 * (step * 7 % 5);
    return step >= 30 && step < 34   ? 50.0
           : step >= 60 && step < 65 ? 70.0
                                     : 6.0 - step * 0.05 + odd;
  };
  constexpr int kSteps = 100;
  for (int every = 1; every < 40; ++every) {
    LossWatch whole(kVocab, {});
    LossWatch stopped(kVocab, {});
    for (int step = 1; step <= kSteps; ++step) {
      ASSERT_EQ(stopped.observe(step, loss_of(step)), whole.observe(step, loss_of(step)));
      if (step % every == 0) {
        LossWatch::State kept;  // as a manifest has it
        kept.reference = stopped.state().reference;
        kept.exploded_at = stopped.state().exploded_at;
        kept.num_calm = stopped.state().num_calm;
        kept.set_window(stopped.state().window());
        stopped = LossWatch(kVocab, kept);
      }
      ASSERT_EQ(stopped.limit(), whole.limit()) << "step " << step << ", stops each " << every;
      ASSERT_EQ(stopped.state().window(), whole.state().window());
      ASSERT_EQ(stopped.state().exploded_at, whole.state().exploded_at);
    }
  }
}

TEST(LossWatch, WhatIsNoNumberExceeds) {
  const LossWatch watch(kVocab, {});
  EXPECT_TRUE(watch.exceeds(std::numeric_limits<double>::quiet_NaN()));
  EXPECT_TRUE(watch.exceeds(std::numeric_limits<double>::infinity()));
  EXPECT_FALSE(watch.exceeds(kChance));
}

}  // namespace
}  // namespace memphis
