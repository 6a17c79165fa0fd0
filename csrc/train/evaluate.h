// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/data/loader.h"
#include "csrc/model/grok.h"
#include "csrc/model/host_scalars.h"
#include "csrc/model/host_stats.h"
#include "csrc/model/pipeline.h"
#include "csrc/plan/training_plan.h"
#include "csrc/train/batch.h"

namespace memphis {

// The mean cross entropy of each validation set. Uses the training model and its activations,
// between steps. Ranks along `data` share the windows out; every rank calls, and has the result. A pass
// is the plan's schedule of validation.
class Evaluator {
 public:
  Evaluator(const Config& config,
            const TrainingPlan& plan,
            const Groups& groups,
            Grok& model,
            Pipeline& pipeline,
            const std::vector<ValidationLoader>& sets,
            Stream stream);

  struct Result {
    double loss = 0;  // nats per target
    std::int64_t targets = 0;
  };
  // Of one set. The first call for it reads the windows once more, to count their targets. `gives_up` is asked before
  // each pass through the model, on every rank, and gives the same answer on all of them: with true the pass ends
  // there, without a result.
  std::optional<Result> run(
      std::size_t set, const std::function<bool()>& gives_up = [] { return false; });
  std::size_t num_sets() const { return sets_.size(); }

 private:
  // Empty where it was given up.
  std::optional<std::int64_t> count_targets(std::size_t set, const std::function<bool()>& gives_up);

  const TrainingPlan& plan_;
  const Groups& groups_;
  Grok& model_;
  Pipeline& pipeline_;
  const std::vector<ValidationLoader>& sets_;
  Stream stream_;
  StepBatch batch_;
  SampleShare samples_;
  std::int64_t micro_batch_;
  std::uint64_t windows_a_pass_;                          // of all ranks
  std::vector<std::uint64_t> num_windows_;                // of each set
  std::vector<std::optional<std::int64_t>> num_targets_;  // likewise
  bool has_run_ = false;
  HostScalars host_scalars_;
  HostStats host_stats_;
};

}  // namespace memphis
