// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/deadline.h"

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

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

// A job that a scheduler stops for longer than the limit goes on where it was.
TEST(Deadline, DoesNotCountWhileTheProcessIsStopped) {
  constexpr std::chrono::seconds kStopped(7);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    {
      const Deadline deadline(6, ExitCode::hang, "nobody comes");
      ::raise(SIGSTOP);
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    }
    std::_Exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  std::this_thread::sleep_for(kStopped);
  ASSERT_EQ(::kill(child, SIGCONT), 0);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(Deadline, OfNoSecondsIsNone) {
  wait_under(0);
}

}  // namespace
}  // namespace memphis::test
