// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/stop_signal.h"

#include <atomic>
#include <csignal>
#include <future>

#include <gtest/gtest.h>

namespace memphis::test {
namespace {

// What is started under nohup ignores it.
const auto ignored_before = std::signal(SIGHUP, SIG_DFL);

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

TEST(StopSignal, CountsAHangupAmongThem) {
  const StopSignal stop;
  std::raise(SIGHUP);
  EXPECT_EQ(stop.received(), SIGHUP);
}

// nohup starts programs so.
TEST(StopSignal, LeavesAHangupIgnoredThatWas) {
  std::signal(SIGHUP, SIG_IGN);
  {
    const StopSignal stop;
    std::raise(SIGHUP);
    EXPECT_EQ(stop.received(), 0);
  }
  EXPECT_EQ(std::signal(SIGHUP, SIG_DFL), SIG_IGN) << "and afterwards";
}

TEST(StopSignal, PutsBackWhatWasThere) {
  const auto other = [](int) {};
  std::signal(SIGTERM, other);
  { const StopSignal stop; }
  EXPECT_EQ(std::signal(SIGTERM, SIG_DFL), +other);
}

// What NothingToSave tells.
class Told {
 public:
  void operator()(int signal) { told_.set_value(signal); }
  int await() { return told_.get_future().get(); }

 private:
  std::promise<int> told_;
};

TEST(NothingToSave, IsToldAtOnce) {
  const StopSignal stop;
  Told told;
  const NothingToSave start([&](int signal) { told(signal); });
  std::raise(SIGTERM);
  EXPECT_EQ(told.await(), SIGTERM);
}

TEST(NothingToSave, IsToldOfASignalBeforeIt) {
  const StopSignal stop;
  std::raise(SIGHUP);
  Told told;
  const NothingToSave start([&](int signal) { told(signal); });
  EXPECT_EQ(told.await(), SIGHUP);
}

TEST(NothingToSave, EndsWhereThereIsSomething) {
  const StopSignal outer;
  std::atomic<int> num_told = 0;
  {
    const NothingToSave start([&](int) { ++num_told; });
    {
      const StopSignal inner;
      std::raise(SIGTERM);
      EXPECT_EQ(inner.received(), SIGTERM);
    }
    std::raise(SIGUSR1);  // all is saved
  }
  EXPECT_EQ(num_told, 0);
}

}  // namespace
}  // namespace memphis::test
