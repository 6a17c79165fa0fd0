// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "csrc/comm/activity.h"
#include "csrc/comm/together.h"
#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/data/loader.h"
#include "csrc/model/grok.h"
#include "csrc/model/host_scalars.h"
#include "csrc/model/host_stats.h"
#include "csrc/model/pipeline.h"
#include "csrc/optim/gradient_reduction.h"
#include "csrc/optim/optimizer.h"
#include "csrc/plan/host_memory.h"
#include "csrc/plan/mesh.h"
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
  // Kernels, products, copies, memsets and events of the graphs that were launched; 0: what was
  // launched is not all of the step.
  std::int64_t graph_nodes = 0;
  // From the end of the step before where that was under way when this one was prepared, else from
  // there.
  double seconds = 0;
  double data_seconds = 0;
  double model_seconds = 0;  // forward and backward
  double optimizer_seconds = 0;
  // Within the step, of all groups of this rank. What is not exposed is hidden behind the work.
  std::optional<Activity::Communication> communication;
};

// One optimizer step: the plan's schedule, clipping, AdamW. After construction nothing is allocated.
// Every rank of `groups` makes the same calls, on samples of its own, and has the same result.
//
// A step is prepared, launched and finished. The next one may be prepared and launched before that:
// then the device goes on while the host reads what the step reports. Between launch() and finish()
// the host waits for nothing where this rank is the only one, but for what the step before reports;
// with `graphs`, which take memory in the first steps, it launches all of the work in two pieces, to
// the same bits.
//
// Ranks agree on a step in two collectives of the host: "step.samples" and "step.expert_load".
class TrainStep {
 public:
  TrainStep(const Config& config,
            const TrainingPlan& plan,
            const Mesh& mesh,
            const Groups& groups,
            Grok& model,
            Pipeline& pipeline,
            Parameters& parameters,
            Optimizer& optimizer,
            const MixtureLoader& loader,
            bool graphs,
            Stream stream);

  // What a rank has to say to all others as a step begins; what prepare() returns is the largest of
  // each number that a rank has said.
  struct News {
    std::int64_t stop = 0;  // why the run is to stop
    std::int64_t save = 0;  // whether a checkpoint is due
  };

  // Fills host memory with step number `step`, counted from 1: samples [first_sample, first_sample +
  // global_batch). DataError, on all ranks, where text is lost on one. A step that is prepared and
  // not launched is forgotten with the next one. At most one step is under way.
  News prepare(std::int64_t step, std::uint64_t first_sample, const News& own);

  // Puts the prepared step on the device. It updates the weights by what the step before has
  // reported, if that is not finished: reads it, and throws for it as finish() does, with nothing of
  // the update on its way.
  void launch();

  // Returns what the first step reports that was launched and not finished. A step whose gradient's
  // norm is not finite changes nothing; after optimizer.max_skipped of them in a row it is a
  // DivergedError. So is a loss that is not finite where the gradient is.
  StepResult finish();

  // Steps that were left out: the optimizer's own count is without them.
  struct Skipped {
    std::int64_t steps = 0;
    std::int64_t in_a_row = 0;  // up to the last step
  };
  const Skipped& skipped() const { return skipped_; }
  void set_skipped(const Skipped& skipped) { skipped_ = skipped; }

  // Computes the gradients of the last step's first micro-batch once more, where the backward pass
  // leaves them and not reduced, from the weights as they are now. Nothing that a later step reads is
  // changed. Every rank calls, none before the first step and none while one is under way.
  void differentiate_again();

  // Of the last step, which is finished. Every rank calls. They read back what the step did not, so
  // they are for a step now and then.
  Routing routing();
  RankTimes rank_times(const StepResult& result);

 private:
  // The host's memory of a step.
  struct Place {
    Place(const Config& config,
          const TrainingPlan& plan,
          const SampleShare& samples,
          const Grok& model,
          bool graphs,
          Stream stream);

    StepBatch batch;
    HostScalars scalars;
    HostStats stats;
    PinnedBuffer offsets;  // i32, of each layer of the model; of this rank's, filled
    Event begin;
    Event filled;
    Event differentiated;
    Event end;
    Event copied;
    std::int64_t step = 0;
    StepResult result;
    bool follows = false;  // another one that was under way when it was prepared
    bool is_read = false;
    // Last, to be destroyed first: their work names the buffers and events above.
    std::optional<StepGraphs> differentiation;
    std::optional<StepGraphs> update;
  };

  // What looks at each op or phase of a step by itself, a profile or a trace, finds none in a graph;
  // and a graph waits for nothing that lies outside of it.
  bool launches_graphs() const;
  // From the copy of the scales to the reduced gradients; from that of the rates to that of the
  // statistics. Return the nodes of their graph.
  std::int64_t differentiate(Place& place);
  std::int64_t update(Place& place);
  void enqueue_differentiation(Place& place);
  // Once, of the loaded scales: every kernel of both passes is loaded, and no gradient is kept.
  void rehearse();
  void enqueue_update(Place& place);
  void enqueue_read_back(Place& place);
  // Waits for the statistics, once, and judges them.
  void read(Place& place);
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
  StepBatch::Counts summed_counts() const;
  void sum_losses_over_ranks();
  double busiest_expert(const Place& place);

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
  RollCall roll_call_;
  std::vector<int> sample_ranks_;  // which have the samples of a step among them, once
  std::array<Place, kStepsUnderWay> places_;
  std::size_t prepared_ = 0;
  std::size_t newest_ = 0;         // that was launched
  std::size_t num_under_way_ = 0;  // launched and not finished
  std::vector<std::int64_t> rows_LE_;
  std::vector<std::byte> host_probs_;  // routing()'s
  Skipped skipped_;                    // up to the last step that was read
  std::vector<bool> padding_;          // of the step's micro-batches
  bool has_rehearsed_ = false;
};

}  // namespace memphis
