// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/deadline.h"

#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "csrc/core/log.h"

namespace memphis::test {
namespace {

void wait_under(double limit_seconds) {
  const Deadline deadline(limit_seconds, ExitCode::hang, "nobody comes");
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
}

TEST(DeadlineDeathTest, EndsWhatWaitsTooLong) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto wait_for_ever = [] {
    configure_log();
    const Deadline deadline(0.05, ExitCode::hang, "nobody comes");
    while (true) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
  };
  EXPECT_EXIT(wait_for_ever(), testing::ExitedWithCode(12), "memphis: nobody comes");
}

TEST(Deadline, LeavesAloneWhatEndsInTime) {
  wait_under(600);
}

TEST(Deadline, OfNoSecondsIsNone) {
  wait_under(0);
}

}  // namespace
}  // namespace memphis::test
