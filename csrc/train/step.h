// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "csrc/comm/activity.h"
#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/data/loader.h"
#include "csrc/model/grok.h"
#include "csrc/model/host_scalars.h"
#include "csrc/model/host_stats.h"
#include "csrc/model/pipeline.h"
#include "csrc/optim/gradient_reduction.h"
#include "csrc/optim/optimizer.h"
#include "csrc/plan/training_plan.h"
#include "csrc/train/batch.h"
#include "csrc/train/routing.h"
#include "csrc/train/step_graphs.h"

namespace memphis {

// What one optimizer step reports. Means are over the step's targets, sequences and tokens; the
// auxiliary losses are without their coefficients, averaged over layers.
struct StepResult {
  double loss = 0;     // nats per target
  double balance = 0;  // 1 when every expert has its share
  double router_z = 0;
  double grad_norm = 0;  // before clipping
  bool skipped = false;  // it is not finite, and weights and optimizer's state are as before
  // Busiest expert over an equal share, worst layer, last micro-batch of each rank.
  double expert_load_max = 0;
  // Of this rank's samples, where ranks share them out: see StepBatch.
  std::optional<double> context_imbalance;
  std::int64_t tokens = 0;
  // Kernels, products, copies, memsets and events of the graph that was launched; 0: there was none.
  std::int64_t graph_nodes = 0;
  double data_seconds = 0;
  double model_seconds = 0;  // forward and backward
  double optimizer_seconds = 0;
  // Within the step, of all groups of this rank. What is not exposed is hidden behind the work.
  std::optional<Activity::Communication> communication;
};

// One optimizer step: the plan's schedule, clipping, AdamW. After construction nothing is allocated.
// Every rank of `groups` makes the same calls, on samples of its own, and has the same result.
//
// Between the samples and the statistics the host enqueues and waits for nothing, where this rank is
// the only one; with `graphs`, which take memory in the first steps, it launches all of that at once,
// to the same bits.
class TrainStep {
 public:
  TrainStep(const Config& config,
            const TrainingPlan& plan,
            const Groups& groups,
            Grok& model,
            Pipeline& pipeline,
            Parameters& parameters,
            Optimizer& optimizer,
            const MixtureLoader& loader,
            bool graphs,
            Stream stream);

  // Step number `step`, counted from 1, on samples [first_sample, first_sample + global_batch).
  // Returns when the device is done. A step whose gradient's norm is not finite changes nothing; after
  // optimizer.max_skipped of them in a row it is a DivergedError. So is a loss that is not finite
  // where the gradient is.
  StepResult run(std::int64_t step, std::uint64_t first_sample);

  // Steps that were left out: the optimizer's own count is without them.
  struct Skipped {
    std::int64_t steps = 0;
    std::int64_t in_a_row = 0;  // up to the last step
  };
  const Skipped& skipped() const { return skipped_; }
  void set_skipped(const Skipped& skipped) { skipped_ = skipped; }

  // Computes the gradients of the step's first micro-batch once more, where the backward pass leaves
  // them and not reduced, from the weights as they are now. Nothing that a later step reads is
  // changed. Every rank calls, and none before the first step.
  void differentiate_again();

  // Of the step that run() has returned from. Every rank calls. They read back what the step did
  // not, so they are for a step now and then.
  Routing routing();
  RankTimes rank_times(const StepResult& result);

 private:
  // From the copy of the step's scalars to those of its statistics; returns the nodes of the graph.
  std::int64_t enqueue_or_launch();
  void enqueue();
  void run(const Action& action, MicroBatch& slot);
  void run_together(const Action& forward,
                    MicroBatch& forward_slot,
                    const Action& backward,
                    MicroBatch& backward_slot);
  void load(const Action& action, MicroBatch& slot);
  void run(const Action& action,
           MicroBatch& slot,
           kernels::WeightGradient weight_gradient,
           GradientSink* sink);
  const PendingWeights& pending_of(const Action& action) const;
  StepBatch::Counts sum_counts(const StepBatch::Counts& counts);
  void sum_losses_over_ranks();
  void enqueue_read_back();
  void read(StepResult& result);
  double busiest_expert();

  const Config& config_;
  SampleShare samples_;
  const TrainingPlan& plan_;
  const Groups& groups_;
  Grok& model_;
  Pipeline& pipeline_;
  Parameters& parameters_;
  GradientReduction reduction_;
  Optimizer& optimizer_;
  const MixtureLoader& loader_;
  Stream stream_;
  StepBatch batch_;
  HostScalars host_scalars_;
  HostStats host_stats_;
  PinnedBuffer host_offsets_;  // i32, of each layer of the model; of this rank's, filled
  std::vector<std::int64_t> rows_LE_;
  std::vector<std::byte> host_probs_;  // routing()'s
  Event begin_;
  Event filled_;
  Event differentiated_;
  Event end_;
  Skipped skipped_;
  std::vector<bool> padding_;  // of the step's micro-batches
  std::optional<StepGraphs> graphs_;
};

}  // namespace memphis
