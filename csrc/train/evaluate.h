// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

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

// The mean cross entropy of the validation set. Uses the training model and its activations,
// between steps. Ranks along `data` share the windows out; every rank calls, and has the result. A pass
// is the plan's schedule of validation.
class Evaluator {
 public:
  Evaluator(const Config& config,
            const TrainingPlan& plan,
            const Groups& groups,
            Grok& model,
            Pipeline& pipeline,
            const ValidationLoader& loader,
            Stream stream);

  struct Result {
    double loss = 0;  // nats per target
    std::int64_t targets = 0;
  };
  // The first call reads the windows once more, to count their targets. `gives_up` is asked before
  // each pass through the model, on every rank, and gives the same answer on all of them: with true the pass ends
  // there, without a result.
  std::optional<Result> run(const std::function<bool()>& gives_up = [] { return false; });

 private:
  // Empty where it was given up.
  std::optional<std::int64_t> count_targets(const std::function<bool()>& gives_up);

  const TrainingPlan& plan_;
  const Groups& groups_;
  Grok& model_;
  Pipeline& pipeline_;
  const ValidationLoader& loader_;
  Stream stream_;
  StepBatch batch_;
  SampleShare samples_;
  std::int64_t micro_batch_;
  std::uint64_t windows_a_pass_;  // of all ranks
  std::uint64_t num_windows_;
  std::optional<std::int64_t> num_targets_;
  HostScalars host_scalars_;
  HostStats host_stats_;
};

}  // namespace memphis
