// SPDX-License-Identifier: Apache-2.0
//
// Spans of a run of hours, on the simulated device, whose clock can be set.
#include <chrono>
#include <cstddef>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/stream_spans.h"
#include "csrc/core/device.h"
#include "csrc/core/device_simt.h"

namespace memphis {
namespace {

using Microseconds = std::chrono::duration<double, std::micro>;

struct SetClock {
  explicit SetClock(double seconds) { simt_device::set_clock(seconds); }
  ~SetClock() { simt_device::set_clock({}); }
};

// From the start of the first span to those of others, and to their ends.
class LongRun : public testing::Test {
 protected:
  LongRun() : clock_(0), stream_(Device::cuda), other_(Device::cuda), spans_(stream_.view()) {
    (void)take(0);
  }

  // A span that begins at a time and takes 20 us.
  StreamSpans::Taken take(double seconds) {
    simt_device::set_clock(seconds);
    const std::size_t span = spans_.begin(kLabel, stream_.view());
    simt_device::set_clock(seconds + kLength);
    spans_.end(span, stream_.view());
    const StreamSpans::Taken taken = spans_.take().at(0);
    if (!first_) {
      first_ = taken.begin;
    }
    return taken;
  }

  void expect_at(const StreamSpans::Taken& taken, double seconds, double exact_to_us) {
    EXPECT_NEAR(Microseconds(taken.begin - *first_).count(), seconds * 1e6, exact_to_us);
    EXPECT_NEAR(Microseconds(taken.end - taken.begin).count(), kLength * 1e6, 0.01);
  }

  static constexpr StreamSpans::Label kLabel{
      .kind = StreamSpans::Kind::phase, .track = "work", .name = "step"};
  static constexpr double kLength = 20e-6;
  SetClock clock_;
  OwnedStream stream_;
  OwnedStream other_;
  StreamSpans spans_;
  std::optional<Trace::Clock::time_point> first_;
};

TEST_F(LongRun, SpansStandWhereTheyWereAfterHours) {
  double seconds = 0;
  for (int step = 1; step <= 20000; ++step) {
    seconds += 0.7 + 1.37e-4 * (step % 101);  // no two steps are alike
    const StreamSpans::Taken taken = take(seconds);
    if (step % 1000 == 0) {
      SCOPED_TRACE(step);
      expect_at(taken, seconds, 1 + 100 * seconds / 3600);
    }
  }
  EXPECT_GT(seconds, 3 * 3600);
}

// One that lasts while others come and go has begun before what those are counted from.
TEST_F(LongRun, ASpanMayLastForManySteps) {
  StreamSpans::Label of_other = kLabel;
  of_other.track = "work of the other";
  const std::size_t lasts = spans_.begin(of_other, other_.view());
  for (int second = 1; second <= 100; ++second) {
    expect_at(take(second), second, 5);
  }
  simt_device::set_clock(100.5);
  spans_.end(lasts, other_.view());
  const StreamSpans::Taken taken = spans_.take().at(0);
  EXPECT_NEAR(Microseconds(taken.begin - *first_).count(), kLength * 1e6, 0.01);
  EXPECT_NEAR(Microseconds(taken.end - taken.begin).count(), 100.5e6 - kLength * 1e6, 5);
}

// A span that begins where the one in front ends is not drawn over it, whatever floats say of both.
TEST_F(LongRun, SpansOfAStreamNeverOverlap) {
  constexpr double kStep = 1.7e-4;
  Trace::Clock::time_point told = *first_;
  std::size_t span = spans_.begin(kLabel, stream_.view());
  for (int i = 1; i <= 20000; ++i) {
    simt_device::set_clock(kLength + kStep * i);
    spans_.end(span, stream_.view());
    span = spans_.begin(kLabel, stream_.view());
    const StreamSpans::Taken taken = spans_.take().at(0);
    ASSERT_GE(taken.begin, told) << i;
    ASSERT_GE(taken.end, taken.begin) << i;
    ASSERT_NEAR(Microseconds(taken.end - *first_).count(), (kLength + kStep * i) * 1e6, 2) << i;
    told = taken.end;
  }
}

// As of two groups of one name: what is under way on one says nothing of the other.
TEST_F(LongRun, SpansOfOtherStreamsAreWhereTheyWere) {
  simt_device::set_clock(1);
  const std::size_t lasts = spans_.begin(kLabel, stream_.view());
  simt_device::set_clock(1.5);
  const std::size_t within = spans_.begin(kLabel, other_.view());
  simt_device::set_clock(1.6);
  spans_.end(within, other_.view());
  simt_device::set_clock(2);
  spans_.end(lasts, stream_.view());
  const std::vector<StreamSpans::Taken> taken = spans_.take();
  ASSERT_EQ(taken.size(), 2U);
  EXPECT_NEAR(Microseconds(taken[1].begin - taken[0].begin).count(), 0.5e6, 1);
  EXPECT_NEAR(Microseconds(taken[1].end - taken[1].begin).count(), 0.1e6, 1);
}

// Only a pause is counted as one float; what follows it is exact again.
TEST_F(LongRun, APauseBlursNoMoreThanItself) {
  constexpr double kPause = 3600.1234567;
  constexpr double kBlur = 250;
  expect_at(take(kPause), kPause, kBlur);
  (void)take(kPause + 1);
  const StreamSpans::Taken before = take(kPause + 2);
  const StreamSpans::Taken after = take(kPause + 3);
  expect_at(after, kPause + 3, kBlur);
  EXPECT_NEAR(Microseconds(after.begin - before.begin).count(), 1e6, 1);
}

}  // namespace
}  // namespace memphis
