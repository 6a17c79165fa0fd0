// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/stop_signal.h"

#include <csignal>

#include <gtest/gtest.h>

namespace memphis::test {
namespace {

TEST(StopSignal, KnowsTheLatest) {
  const StopSignal stop;
  EXPECT_EQ(stop.received(), 0);
  std::raise(SIGTERM);
  EXPECT_EQ(stop.received(), SIGTERM);
  std::raise(SIGUSR1);
  EXPECT_EQ(stop.received(), SIGUSR1);
}

TEST(StopSignal, LeavesSignalsToTheOneAroundIt) {
  const StopSignal outer;
  std::raise(SIGUSR1);
  {
    const StopSignal inner;
    EXPECT_EQ(inner.received(), SIGUSR1) << "which came before it";
  }
  std::raise(SIGUSR2);  // would end the process
  EXPECT_EQ(outer.received(), SIGUSR2);
}

TEST(StopSignal, ForgetsWhatCameToAnEarlierOne) {
  {
    const StopSignal earlier;
    std::raise(SIGUSR1);
  }
  EXPECT_EQ(StopSignal().received(), 0);
}

}  // namespace
}  // namespace memphis::test
