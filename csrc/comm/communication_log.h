// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <type_traits>
#include <vector>

namespace memphis {

// A call of a collective by one rank. Of fixed size: it travels between ranks as bytes.
//
// Times are nanoseconds of the rank's own monotonic clock; 0: not measured, or it did not happen.
struct CommunicationRecord {
  enum class Role : std::uint8_t { member, sender, receiver };  // the last two of a Broadcast

  // Where the rank was: in which stage of a pipeline, with which micro-batch; -1: in none.
  struct Place {
    std::int32_t stage = -1;
    std::int32_t micro_batch = -1;
  };

  std::array<char, 24> axis = {};
  std::array<char, 32> name = {};
  Role role = Role::member;
  std::int32_t peer = -1;  // rank of the job at the other end, where the group has two
  std::int64_t step = 0;
  std::int64_t bytes = 0;
  // A receive is started long before the action that needs it and waited for right before that; a
  // send is started right behind the action that made it.
  Place started_in;
  Place waited_in;
  std::int64_t started = 0;  // the rank has handed its part over, or has room for what arrives
  std::int64_t begun = 0;    // a thread moves it
  std::int64_t ended = 0;    // all has arrived and left
  std::int64_t wait_begin = 0;
  std::int64_t wait_end = 0;
};
static_assert(std::is_trivially_copyable_v<CommunicationRecord>);

// The calls of one rank, in the order in which they were started. Any thread may call.
//
// Room for `max_records` is taken at once, so that a step allocates nothing; what comes later is
// counted and left out.
class CommunicationLog {
 public:
  static constexpr std::int64_t kNotKept = -1;

  explicit CommunicationLog(std::size_t max_records);

  // The number of this call, for what is learnt of it later.
  std::int64_t start(const CommunicationRecord& record);
  void move(std::int64_t number, std::int64_t begin, std::int64_t end);
  void wait(std::int64_t number,
            const CommunicationRecord::Place& place,
            std::int64_t begin,
            std::int64_t end);

  // A copy: what was started may still be under way.
  std::vector<CommunicationRecord> records() const;
  std::size_t num_left_out() const;

 private:
  mutable std::mutex mutex_;
  std::vector<CommunicationRecord> records_;
  std::size_t num_left_out_ = 0;
};

}  // namespace memphis
