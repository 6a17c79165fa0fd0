// SPDX-License-Identifier: Apache-2.0
#include "csrc/optim/lr_schedule.h"

#include <cmath>
#include <numbers>

#include <gtest/gtest.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr double kPeak = 3e-4;

ScheduleConfig schedule_of(Decay decay) {
  ScheduleConfig schedule;
  schedule.steps = 1000;
  schedule.warmup_steps = 100;
  schedule.decay = decay;
  schedule.decay_steps = 200;
  schedule.min_ratio = 0.1;
  return schedule;
}

double ratio(const ScheduleConfig& schedule, std::int64_t step) {
  return learning_rate(schedule, kPeak, step) / kPeak;
}

// A handful of roundings of a number of about 1, none amplified.
constexpr double kRounding = 8 * 0x1p-53;

TEST(LearningRate, WarmsUpLinearlyToThePeak) {
  for (const Decay decay : {Decay::cosine, Decay::wsd, Decay::constant}) {
    const ScheduleConfig schedule = schedule_of(decay);
    EXPECT_NEAR(ratio(schedule, 1), 0.01, kRounding);
    EXPECT_NEAR(ratio(schedule, 50), 0.5, kRounding);
    EXPECT_EQ(learning_rate(schedule, kPeak, 100), kPeak);
  }
}

TEST(LearningRate, CosineHasItsClosedForms) {
  const ScheduleConfig schedule = schedule_of(Decay::cosine);
  EXPECT_NEAR(ratio(schedule, 400), 0.1 + 0.9 * 0.75, kRounding);  // a third of the way: cos = 1/2
  EXPECT_NEAR(ratio(schedule, 550), 0.1 + 0.9 * 0.5, kRounding);
  EXPECT_NEAR(ratio(schedule, 700), 0.1 + 0.9 * 0.25, kRounding);
  EXPECT_NEAR(ratio(schedule, 1000), 0.1, kRounding);
}

TEST(LearningRate, WsdIsFlatThenLinear) {
  const ScheduleConfig schedule = schedule_of(Decay::wsd);
  EXPECT_EQ(learning_rate(schedule, kPeak, 101), kPeak);
  EXPECT_EQ(learning_rate(schedule, kPeak, 800), kPeak);
  EXPECT_NEAR(ratio(schedule, 801), 1 - 0.9 / 200, kRounding);
  EXPECT_NEAR(ratio(schedule, 900), 0.55, kRounding);
  EXPECT_NEAR(ratio(schedule, 1000), 0.1, kRounding);
}

TEST(LearningRate, ConstantStaysAtThePeak) {
  const ScheduleConfig schedule = schedule_of(Decay::constant);
  for (const std::int64_t step : {100, 101, 999, 1000, 5000}) {
    EXPECT_EQ(learning_rate(schedule, kPeak, step), kPeak);
  }
}

TEST(LearningRate, StaysAtTheEndAfterTheLastStep) {
  for (const Decay decay : {Decay::cosine, Decay::wsd}) {
    EXPECT_NEAR(ratio(schedule_of(decay), 1001), 0.1, kRounding);
    EXPECT_NEAR(ratio(schedule_of(decay), 1000000), 0.1, kRounding);
  }
}

TEST(LearningRate, RisesThenNeverRisesAndNeverJumps) {
  for (const Decay decay : {Decay::cosine, Decay::wsd, Decay::constant}) {
    const ScheduleConfig schedule = schedule_of(decay);
    // The steepest slopes: 1/w in the warm-up, 0.9 * pi/2 / (n - w) of the cosine, 0.9 /
    // decay_steps.
    const double steepest = decay == Decay::cosine ? 0.9 * std::numbers::pi / 2 / 900 : 0.9 / 200;
    for (std::int64_t step = 2; step <= 1100; ++step) {
      const double change = ratio(schedule, step) - ratio(schedule, step - 1);
      if (step <= 100) {
        EXPECT_GT(change, 0) << step;
        EXPECT_LE(change, 0.01 + kRounding) << step;
      } else {
        EXPECT_LE(change, kRounding) << step;
        EXPECT_GE(change, -steepest - kRounding) << step;
      }
    }
  }
}

TEST(LearningRate, WithoutWarmUpTheFirstStepIsOnTheCurve) {
  ScheduleConfig schedule = schedule_of(Decay::cosine);
  schedule.warmup_steps = 0;
  EXPECT_NEAR(
      ratio(schedule, 1), 0.1 + 0.9 * (1 + std::cos(std::numbers::pi / 1000)) / 2, kRounding);
}

TEST(LearningRate, DegenerateSchedulesAreFinite) {
  ScheduleConfig all_warmup = schedule_of(Decay::cosine);
  all_warmup.warmup_steps = 1000;
  EXPECT_EQ(learning_rate(all_warmup, kPeak, 1000), kPeak);
  EXPECT_NEAR(ratio(all_warmup, 1001), 0.1, kRounding);

  ScheduleConfig overlapping = schedule_of(Decay::wsd);
  overlapping.decay_steps = 5000;  // would begin before the first step: begins after the warm-up
  EXPECT_EQ(learning_rate(overlapping, kPeak, 100), kPeak);
  EXPECT_NEAR(ratio(overlapping, 550), 0.55, kRounding);

  ScheduleConfig no_decay = schedule_of(Decay::wsd);
  no_decay.decay_steps = 0;
  EXPECT_EQ(learning_rate(no_decay, kPeak, 999), kPeak);
  EXPECT_NEAR(ratio(no_decay, 1000), 0.1, kRounding);
}

TEST(LearningRate, RefusesStepZero) {
  EXPECT_THROW(learning_rate(schedule_of(Decay::cosine), kPeak, 0), ContractError);
}

}  // namespace
}  // namespace memphis
