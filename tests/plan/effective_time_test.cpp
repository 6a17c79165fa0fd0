// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/effective_time.h"

#include <cmath>

#include <gtest/gtest.h>

namespace memphis {
namespace {

// By hand, for the failures that were published of 16,384 GPUs and of 98,304.
TEST(EffectiveTime, IsWhatTheFormulaGives) {
  constexpr double kHour = 3600;
  struct Case {
    double between;
    double save;
    double restart;
    double share;
  };
  for (const Case& tested : {Case{3.1 * kHour, 0.6, 240, 0.969},
                             Case{3.1 * kHour, 5, 240, 0.951},
                             Case{3.1 * kHour, 60, 600, 0.864},
                             Case{0.5 * kHour, 0.6, 240, 0.863},
                             Case{0.3 * kHour, 60, 600, 0.529},
                             Case{99 * kHour, 0.6, 240, 0.997}}) {
    const EffectiveTime time = effective_time({.seconds_between_failures = tested.between,
                                               .save_seconds = tested.save,
                                               .restart_seconds = tested.restart});
    EXPECT_NEAR(time.share, tested.share, 0.001);
  }
  const EffectiveTime time = effective_time(
      {.seconds_between_failures = 3.1 * kHour, .save_seconds = 0.6, .restart_seconds = 240});
  EXPECT_NEAR(time.interval_seconds, 116, 0.5);
  EXPECT_NEAR(time.lost_seconds, 58, 0.25);
}

// No other interval leaves more.
TEST(EffectiveTime, IntervalIsTheBest) {
  const Interruptions of{
      .seconds_between_failures = 1800, .save_seconds = 20, .restart_seconds = 100};
  const EffectiveTime best = effective_time(of);
  for (const double factor : {0.8, 1.25}) {
    const double t = factor * best.interval_seconds;
    const double share = 1 / (1 + of.save_seconds / t + (t / 2 + of.restart_seconds) / 1800);
    EXPECT_LT(share, best.share);
  }
}

TEST(EffectiveTime, SavesThatTakeNoTimeLoseNothing) {
  const EffectiveTime time =
      effective_time({.seconds_between_failures = 1000, .save_seconds = 0, .restart_seconds = 100});
  EXPECT_NEAR(time.share, 1 / 1.1, 1e-12);
}

TEST(EffectiveTime, FailuresComeOftenerToMoreRanks) {
  const Machine machine = load_machine("configs/machines/h100_sxm.yaml");
  const Interruptions few = interruptions_of(machine, 512, 1e9);
  const Interruptions many = interruptions_of(machine, 16384, 1e9);
  EXPECT_NEAR(many.seconds_between_failures / 3600, 3.1, 0.05);
  EXPECT_NEAR(few.seconds_between_failures / many.seconds_between_failures, 32, 1e-9);
  EXPECT_NEAR(few.save_seconds, 1 / machine.save_gb_per_second, 1e-9);
  EXPECT_EQ(few.restart_seconds, machine.restart_seconds);
}

TEST(EffectiveTime, WattsFollowTheWork) {
  const Machine machine = load_machine("configs/machines/h100_sxm.yaml");
  StepTime time;
  EXPECT_EQ(watts_of_rank(machine, time, Products::bf16), machine.idle_watts);
  time.model_tflops = machine.large_bf16_tflops;
  EXPECT_NEAR(watts_of_rank(machine, time, Products::bf16), machine.busy_watts, 1e-9);
  EXPECT_LT(watts_of_rank(machine, time, Products::fp8), machine.busy_watts);
}

}  // namespace
}  // namespace memphis
