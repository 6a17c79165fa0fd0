// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/core/arena.h"
#include "csrc/model/groups.h"
#include "csrc/model/micro_batch.h"
#include "csrc/plan/activations.h"
#include "csrc/plan/message_buffers.h"

namespace memphis {

// What the broadcast of one is called.
const char* name_of_message(MessageKind kind);

// A rank's part of a pipeline: it goes through the actions of a schedule in their order, and brings
// each the input of its stage and takes its output further, to a stage on this rank or another.
//
// A message is a broadcast among two ranks, in the queue of its kind, so that messages of a queue
// arrive in the order of its schedule and no queue waits for another. A receive is started as soon
// as there is a place for it, long before it is needed; a send goes on while the next action is
// done. What is said of queues and places, csrc/plan/schedule_messages.h proves.
//
// One stage on one rank has no messages: the actions are done, and nothing else.
class Pipeline {
 public:
  // `plan` has the places, which are taken from `workspace`, and `slots` are those of
  // `activations`. `dhidden_TD` is where a backward pass finds the gradient of its output and
  // leaves that of its input; absent for inference. All referents must outlive it.
  Pipeline(const MessageBuffers& plan,
           const ActivationPlan& activations,
           const Groups& groups,
           std::span<MicroBatch> slots,
           const TensorView& dhidden_TD,
           Arena& workspace,
           Stream stream);

  // Does an action, on the slot of its micro-batch.
  using Act = std::function<void(const Action&, MicroBatch&)>;
  // Does two at one time, a forward and a backward pass.
  using ActTogether = std::function<void(const Action&, MicroBatch&, const Action&, MicroBatch&)>;
  // `schedule` is one of those that the plan was made for. Every rank of the pipeline runs its part
  // of the same one. Without `together` the actions of a pair are done one after the other.
  void run(const PipelineSchedule& schedule, const Act& act, const ActTogether& together = {});

  // Does the actions of the first micro-batch and leaves the others out, and starts each receive when
  // it is needed: then none is on its way that waits for what this rank has yet to send. For a
  // schedule of one micro-batch, which loses nothing by it, and on a GPU before a schedule's first
  // run(), for what its actions have the driver and libraries do once, such as loading a kernel: that
  // may wait until nothing is on the GPU, which run() would never have.
  void run_first(const PipelineSchedule& schedule, const Act& act);
  // Whether run() starts receives on a GPU; the same on every rank of the pipeline.
  bool receives_on_gpu() const;

  MicroBatch& slot_of(std::int64_t chunk, std::int64_t micro_batch);

 private:
  // At one end of a queue.
  struct End {
    MessageQueue queue;
    Communicator* group = nullptr;  // null: this rank is at neither end
    std::vector<TensorView> places;
    // By place, what is on its way.
    std::vector<std::unique_ptr<Communicator::Work>> under_way;

    // The sender, in the group, whose ranks ascend.
    int root() const { return queue.from_rank < queue.to_rank ? 0 : 1; }
  };
  // From one chunk of this rank to another, by micro-batch.
  struct Handed {
    std::vector<TensorView> activations;
    std::vector<TensorView> gradients;
  };

  // Of which micro-batches: with `first` no receive is started ahead.
  enum class Which : std::uint8_t { all, first };
  void go_through(const PipelineSchedule& schedule,
                  Which which,
                  const Act& act,
                  const ActTogether& together);
  void match_queues(const PipelineSchedule& schedule);
  End& end_of(const ScheduleStep& step);
  void start_receives(const PipelineSchedule& schedule);
  void start_receive(End& end, std::int64_t sequence);
  void receive(const ScheduleStep& step);
  // The one that has the place next.
  void start_next_receive(const PipelineSchedule& schedule, const ScheduleStep& step);
  void send(const ScheduleStep& step);
  // Before and after the action.
  void take_over(const PipelineShape& shape, const Action& action);
  void hand_over(const PipelineShape& shape, const Action& action);
  // What the action begins with, and what it leaves.
  const TensorView& input_of(const Action& action);
  const TensorView& output_of(const Action& action);
  void copy(const TensorView& to, const TensorView& from);

  std::int64_t rank_;
  const ActivationPlan& activations_;
  const Groups& groups_;
  std::span<MicroBatch> slots_;
  TensorView dhidden_TD_;
  Stream stream_;
  std::vector<End> ends_;                  // by queue
  std::vector<Handed> handed_;             // by chunk that takes
  std::vector<std::size_t> end_of_queue_;  // by queue of the schedule that runs
};

}  // namespace memphis
