// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/clock_offset.h"

#include <vector>

#include <gtest/gtest.h>

namespace memphis {
namespace {

TEST(ClockOffset, IsThatOfTheShortestRoundTrip) {
  // The other clock is 1000 ahead. The longest trips are the least even ones.
  const std::vector<RoundTrip> trips = {{.sent = 10, .answered = 1100, .received = 120},
                                        {.sent = 200, .answered = 1205, .received = 210},
                                        {.sent = 300, .answered = 1301, .received = 390}};
  EXPECT_EQ(offset_by(trips), -1000);
}

TEST(ClockOffset, ClocksDriftEvenly) {
  const ClockOffset before{.time = 1000, .offset = 50};
  const ClockOffset after{.time = 3000, .offset = 70};
  EXPECT_EQ(on_first_clock(1000, before, after), 1050);
  EXPECT_EQ(on_first_clock(2000, before, after), 2060);
  EXPECT_EQ(on_first_clock(3000, before, after), 3070);
  EXPECT_EQ(on_first_clock(0, before, after), 0) << "not measured";
}

}  // namespace
}  // namespace memphis
