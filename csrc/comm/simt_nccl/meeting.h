// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include <pthread.h>

#include "csrc/comm/simt_nccl/call.h"
#include "csrc/comm/simt_nccl/failure.h"

// What the ranks of a communicator see of each other: memory that all of them map. It lies in a
// file without a name (memfd), which ranks open by the process that made the id and its descriptor
// there. Each rank holds a lock on the byte of its number, of an open file of its own: the system
// lets go of it when the process ends, whatever ends it.
namespace memphis::simt_nccl {

// Of a rank's collectives, sends to a rank or receives from a rank, the one that it has come to,
// counted from 1. `terms` hold once `number` is stored, and until all who are in it have moved
// data.
struct Posted {
  std::atomic<std::uint64_t> number;
  Terms terms;
};

// Of a rank, regarding one other.
struct PairBoard {
  Posted send;
  Posted receive;
  std::atomic<std::uint64_t> num_enqueued_sends;
  std::atomic<std::uint64_t> num_enqueued_receives;
  // Under the lock: how many, those of the group under way among them.
  std::uint64_t num_sends;
  std::uint64_t num_receives;
};

enum class State : std::int32_t { absent, idle, busy, parting };

// What one rank writes, but for taking from its box, and all read.
struct alignas(64) RankBoard {
  Posted collective;
  std::atomic<std::uint64_t> num_enqueued;  // collectives, those that have not begun among them
  std::atomic<std::uint64_t> num_filled;    // chunks of collectives that lie in its stages
  std::atomic<std::uint64_t> num_drained;   // those of all ranks that it is done with
  // For whom a chunk lies in the box, counted from 1; 0 once that rank has taken it.
  std::atomic<std::int32_t> box;

  // Under the lock.
  State state;
  std::uint64_t num_collectives;  // those of the group under way among them
  std::array<char, 512> calls;    // that group, for messages
};

class Meeting {
 public:
  // Of each of the three stages of a rank: two for chunks of collectives, in turn, and its box.
  static constexpr std::size_t kBox = 2;
  static constexpr std::size_t kStageBytes = std::size_t{64} << 10;
  static constexpr int kMaxRanks = 1024;

  // An id, and the file behind it, which stays open until close_ids or the end of the process.
  static ncclUniqueId make_id();
  // Those of `ids` that are of this process.
  static void close_ids(std::span<const ncclUniqueId> ids) noexcept;

  // While one waits: yields the core, and throws if it shall wait no longer.
  using Pause = std::function<void()>;

  // Enters as `rank`; throws Failure.
  Meeting(std::span<const ncclUniqueId> ids, int rank, int num_ranks, const Pause& pause);
  ~Meeting();
  Meeting(const Meeting&) = delete;
  Meeting& operator=(const Meeting&) = delete;

  int rank() const { return rank_; }
  int size() const { return num_ranks_; }
  bool all_are_here() const;

  RankBoard& of(int rank) const;
  PairBoard& of(int rank, int peer) const;
  std::byte* stage(int rank, std::size_t index) const;

  // Calls `body` with what is under the lock.
  void locked(const Pause& pause, const std::function<void()>& body) const;

  // Whether a rank that was here has left, or its process has ended.
  bool is_gone(int rank) const;

  // The first failure is kept, for all.
  void fail(const Failure& failure, const Pause& pause) const;
  bool has_failed() const;
  Failure failure() const;  // requires has_failed()

 private:
  struct Header;

  Header& header() const;
  void enter(std::span<const ncclUniqueId> ids, const Pause& pause);
  void leave() noexcept;

  int rank_;
  int num_ranks_;
  int file_ = -1;
  std::size_t bytes_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace memphis::simt_nccl
