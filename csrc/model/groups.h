// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/plan/mesh.h"

namespace memphis {

// The communicators of this rank, one for each axis of the mesh that talks. Axes of one rank have
// communicators too, so nobody asks.
class Groups {
 public:
  // Collective: every rank of `world` calls. `mesh` folds its ranks, and `all_host` is all of them.
  Groups(World& world,
         const Mesh& mesh,
         const ModelConfig& model,
         Device device,
         std::unique_ptr<Communicator> all_host);

  // One rank, alone.
  explicit Groups(Device device);

  // Collective: every rank calls where ranks along `context` send each other rows, by a ring or
  // from all to all, before the first step. Ranks of a pipeline are connected for that then.
  void connect_context();

  Communicator& tensor() const { return *tensor_; }
  Communicator& context() const { return *context_; }
  // Those of both, who share out a sequence.
  Communicator& sequence_ranks() const;
  Communicator& kv_sharers() const { return *kv_sharers_; }
  Communicator& data_context() const { return *data_context_; }
  Communicator& expert_ranks() const { return *expert_ranks_; }
  Communicator& expert_data() const { return *expert_data_; }
  Communicator& stage_ranks() const { return *stage_ranks_; }
  Communicator& pipeline() const { return *pipeline_; }
  // The two ranks that have the tied embedding, the one with the embedding first; one rank alone
  // elsewhere.
  Communicator& tied() const { return *tied_; }
  // Of a queue of message_queues(): its two ranks. Null on the others.
  Communicator* queue(std::size_t index) const { return queues_[index].get(); }
  // Those of the GPU on which receives of a pipeline stand nearly all the time, as they are started
  // long before their messages are sent.
  std::int64_t receiving_multiprocessors() const { return receiving_multiprocessors_; }
  // The ranks of these, for counts in host memory.
  Communicator& data_context_host() const { return *data_context_host_; }
  // Every rank of the job, for what all must know.
  Communicator& all_host() const { return *all_host_; }

  // What this rank does, for the watchdog, the trace and messages.
  Activity& activity() const { return *activity_; }

  // Those that sum the gradients of a segment.
  Communicator& replicas(Axis axis) const;

 private:
  std::unique_ptr<Activity> own_activity_;  // of one rank, alone
  Activity* activity_;
  std::unique_ptr<Communicator> tensor_;
  std::unique_ptr<Communicator> context_;
  std::unique_ptr<Communicator> sequence_ranks_;  // null where context or tensor is all of them
  std::unique_ptr<Communicator> kv_sharers_;
  std::unique_ptr<Communicator> data_context_;
  std::unique_ptr<Communicator> expert_ranks_;
  std::unique_ptr<Communicator> expert_data_;
  std::unique_ptr<Communicator> stage_ranks_;
  std::unique_ptr<Communicator> pipeline_;
  std::unique_ptr<Communicator> tied_;
  std::vector<std::unique_ptr<Communicator>> queues_;
  std::int64_t receiving_multiprocessors_ = 0;
  std::unique_ptr<Communicator> data_context_host_;
  std::unique_ptr<Communicator> all_host_;
  bool connects_ahead_ = false;
};

}  // namespace memphis
