// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/clock_offset.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <string>
#include <vector>

#include "csrc/comm/activity.h"
#include "csrc/comm/together.h"

namespace memphis {
namespace {

constexpr std::size_t kNumTrips = 16;

std::int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             Activity::Clock::now().time_since_epoch())
      .count();
}

// Processes under one kernel have one clock, in containers too unless a time namespace shifts it.
std::string kernel_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  return std::getline(file, id) ? id : host_name();
}

// One number from rank `from` to rank `to`; the others only count the call.
void send_number(Communicator& all_host, int from, int to, std::int64_t& number) {
  std::vector<std::int64_t> send_rows(static_cast<std::size_t>(all_host.size()));
  std::vector<std::int64_t> recv_rows(send_rows.size());
  send_rows[static_cast<std::size_t>(to)] = all_host.rank() == from ? 1 : 0;
  recv_rows[static_cast<std::size_t>(from)] = all_host.rank() == to ? 1 : 0;
  std::int64_t sent = number;
  std::int64_t received = number;
  all_host.run(AllToAll{.y = {&received, {1}, DType::i64, Device::cpu},
                        .x = {&sent, {1}, DType::i64, Device::cpu},
                        .send_rows = send_rows,
                        .recv_rows = recv_rows},
               "clock.offset",
               {});
  number = received;
}

}  // namespace

std::int64_t offset_by(std::span<const RoundTrip> trips) {
  const auto shortest =
      std::min_element(trips.begin(), trips.end(), [](const RoundTrip& a, const RoundTrip& b) {
        return a.received - a.sent < b.received - b.sent;
      });
  return shortest->sent + (shortest->received - shortest->sent) / 2 - shortest->answered;
}

std::int64_t on_first_clock(std::int64_t time,
                            const ClockOffset& before,
                            const ClockOffset& after) {
  if (time == 0) {
    return 0;
  }
  const std::int64_t length = after.time - before.time;
  if (length <= 0) {
    return time + before.offset;
  }
  const double share = static_cast<double>(time - before.time) / static_cast<double>(length);
  const auto drift = static_cast<double>(after.offset - before.offset);
  return time + before.offset + static_cast<std::int64_t>(share * drift);
}

ClockOffset measure_clock_offset(Communicator& all_host) {
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(all_host.size()));
  for (int rank = 1; rank < all_host.size(); ++rank) {
    std::array<RoundTrip, kNumTrips> trips;
    for (RoundTrip& trip : trips) {
      std::int64_t question = 0;
      trip.sent = now();
      send_number(all_host, 0, rank, question);
      std::int64_t answer = now();
      send_number(all_host, rank, 0, answer);
      trip.received = now();
      trip.answered = answer;
    }
    if (all_host.rank() == 0) {
      offsets[static_cast<std::size_t>(rank)] = offset_by(trips);
    }
  }
  sum_over_ranks(all_host, offsets, "clock.offsets");
  const std::string own = kernel_id();
  const bool same_machine = text_of_rank(all_host, 0, own, "clock.machine") == own;
  return {.time = now(),
          .offset = same_machine ? 0 : offsets[static_cast<std::size_t>(all_host.rank())]};
}

}  // namespace memphis
