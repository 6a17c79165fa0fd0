// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "csrc/comm/communicator.h"

namespace memphis {

// All times are nanoseconds of the monotonic clock, which is one for the processes of a machine and
// begins anywhere on another.

// A question of the first rank and the answer to it.
struct RoundTrip {
  std::int64_t sent = 0;      // on the first rank's clock, as `received`
  std::int64_t answered = 0;  // on the other rank's
  std::int64_t received = 0;
};

// What to add to a time of the other rank's clock for the first rank's, by the shortest of the
// trips: off by half of that one at most. Cristian 1989, doi:10.1007/BF01784024.
std::int64_t offset_by(std::span<const RoundTrip> trips);

// Of a rank's clock, at a time of this clock.
struct ClockOffset {
  std::int64_t time = 0;
  std::int64_t offset = 0;
};

// On the first rank's clock, where offsets before and after are known: clocks drift apart evenly.
// 0, a time that was not measured, stays 0.
std::int64_t on_first_clock(std::int64_t time, const ClockOffset& before, const ClockOffset& after);

// Of this rank's clock. 0 on the first rank's machine. Every rank calls.
ClockOffset measure_clock_offset(Communicator& all_host);

}  // namespace memphis
