// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/comm/host_transport.h"

namespace memphis {

// The collectives of Communicator for memory of the CPU, over any transport. Every sum runs in the
// order of ranks: each rank sums one range of it and all receive the sums.
//
// start() hands the collective to a thread of this communicator, which the first call creates;
// run() stays on the caller's thread unless something is still queued before it.
class HostCommunicator final : public Communicator {
 public:
  HostCommunicator(std::string axis, std::unique_ptr<HostTransport> transport, Activity& activity);
  ~HostCommunicator() override;

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  std::unique_ptr<Work> start(const Collective& collective,
                              std::string_view name,
                              Stream stream) override;
  void run(const Collective& collective, std::string_view name, Stream stream) override;

  // What it keeps for the next collective, while none is under way: as much as the largest so far
  // needed.
  std::size_t buffer_bytes() const { return staging_.size() + packed_.size(); }

 private:
  // What a collective on its way holds: its operands, and its rows where it has any.
  struct Task;
  class QueuedWork;

  // What this rank's own thread calls now.
  Activity::Call call_of(const Collective& collective, std::string_view name) const;
  void execute(const Collective& collective, const Activity::Call& call);
  void execute(const AllReduce& op, std::string_view name);
  void execute(const AllGather& op, std::string_view name);
  void execute(const ReduceScatter& op, std::string_view name);
  void execute(const AllToAll& op, std::string_view name);
  void execute(const Broadcast& op, std::string_view name);
  void execute(const Sums& op, std::string_view name);
  void exchange(std::string_view name);
  void sum_pieces(const TensorView& y, Reduce reduce, std::string_view name);
  std::shared_ptr<Task> enqueue(const Collective& collective, const Activity::Call& call);
  void work();

  std::string axis_;
  std::unique_ptr<HostTransport> transport_;
  Activity& activity_;
  // Of one exchange; kept, so that a step that has run once allocates nothing.
  std::vector<std::span<const std::byte>> to_;
  std::vector<std::span<std::byte>> from_;
  std::vector<std::byte> staging_;
  std::vector<std::byte> packed_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Task>> queue_;  // the first is being executed
  bool closing_ = false;
  std::thread worker_;
};

}  // namespace memphis
