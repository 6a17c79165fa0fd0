// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <nccl.h>

#include "csrc/comm/simt_nccl/call.h"
#include "csrc/comm/simt_nccl/failure.h"
#include "csrc/comm/simt_nccl/meeting.h"
#include "csrc/core/device_simt.h"
#include "csrc/core/pause.h"
#include "csrc/core/simt_memory.h"

namespace memphis::simt_nccl {

// One rank's end of a communicator, and the thread that does its work: connects, makes the groups
// of calls that it is given, in their order and each behind what lies on its streams, and parts.
class Communicator {
 public:
  // On so many channels at most; 0: as many as NCCL takes by itself.
  Communicator(std::string name,
               std::vector<ncclUniqueId> ids,
               int rank,
               int num_ranks,
               int num_channels = 0);
  // Ends whatever is under way.
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  const std::string& name() const { return name_; }
  int rank() const { return rank_; }
  int size() const { return num_ranks_; }

  // What went wrong; ncclInProgress while it connects, parts, or has been given a call of a kind
  // that it has not made before, to which the other ranks have not come; else ncclSuccess.
  Failure status() const;

  // Those require ncclSuccess. The calls are pending work on the stream of each until their group
  // is done.
  void make(std::vector<Call> calls);
  void finalize();

  // This rank cannot go on, for a fault of its own: all ranks fail of it.
  void fail(const Failure& failure);

 private:
  struct Job {
    enum class Kind { connect, calls, part };
    Kind kind;
    std::vector<Call> calls;
    std::vector<simt_stream::PendingWork> work;  // one on each stream of the calls
  };

  // A send or a receive under way.
  struct Transfer {
    Call call;
    std::size_t num_moved = 0;  // chunks
  };
  struct Peer {
    std::deque<Transfer> sends;
    std::deque<Transfer> receives;
    std::uint64_t num_sent = 0;  // done, of the communicator's life
    std::uint64_t num_received = 0;
  };

  void run() noexcept;
  Failure failure_of(const Job& job) noexcept;
  // Under the mutex.
  void start(Job job);
  static void give_up(Job& job);
  void note_enqueued(const std::vector<Call>& calls);
  // What NCCL keeps on the device for what it sends to a rank and receives from it: for this one's
  // neighbours in a ring, and, apart from those, for a rank that a send or a receive names
  // (connIndex 0 and 1 of NCCL's enqueue.cc). Once each.
  enum class Connection { ring, pair };
  void keep_buffers_of_ring();
  void keep_buffers_of(Connection connection, int peer);
  bool all_have_come() const;

  void connect();
  void make_calls(const Job& job);
  void part();

  // Each does what can be done without waiting, and returns whether that was anything.
  bool advance_collective();
  bool fill(const Call& call);
  bool drain(const Call& call);
  bool advance_sends();
  bool put_into_box();
  bool advance_receives();
  bool take_from_box(int sender);

  void expect_same_on_all(const Call& call) const;
  void expect_match(int peer, const Terms& own, const Terms& other) const;
  void copy_to_stage(const Call& call, std::size_t chunk, std::byte* stage) const;
  void copy_from_stages(const Call& call, std::size_t chunk, std::size_t half) const;

  RankBoard& own() const { return meeting_->of(rank_); }
  void locked(const std::function<void()>& body);
  // While the thread waits: leaves the core to others, and throws where it shall not wait any
  // longer. Yield asks for an abort alone.
  void yield();
  void pause_unless_failed();
  void pause();
  void begin_to_wait();

  const std::string name_;
  const std::vector<ncclUniqueId> ids_;
  const int rank_;
  const int num_ranks_;
  const std::size_t num_channels_;

  std::optional<Meeting> meeting_;  // of the thread, until it has connected

  // Of the thread.
  std::deque<Call> collectives_;
  std::vector<Peer> peers_;
  std::uint64_t num_collectives_ = 0;  // done, of the communicator's life
  std::uint64_t num_chunks_ = 0;       // of those
  std::uint64_t num_filled_ = 0;       // of the one under way
  std::uint64_t num_drained_ = 0;
  bool agreed_ = false;  // all ranks make it
  int box_peer_ = 0;     // whose chunk was put into the box last
  Pause pause_;
  std::size_t num_pauses_ = 0;  // since something moved

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;  // the first is under way
  Failure failure_;       // of it: what is in jobs_ will not be done
  std::atomic<bool> connected_ = false;
  std::atomic<bool> stop_ = false;
  // Of collectives that were enqueued: which kinds, and the number of the first of the latest kind.
  std::array<bool, kNumKinds> made_ = {};
  std::uint64_t num_awaited_ = 0;
  // Of the thread until it has connected, and then of who makes calls.
  std::map<std::pair<Connection, int>, simt_memory::Kept> buffers_;

  std::thread thread_;  // last: it uses the others
};

}  // namespace memphis::simt_nccl
