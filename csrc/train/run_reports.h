// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/core/progress.h"
#include "csrc/data/dataset.h"
#include "csrc/data/loader.h"
#include "csrc/model/grok.h"
#include "csrc/model/groups.h"
#include "csrc/model/pipeline.h"
#include "csrc/model/weight_residency.h"
#include "csrc/plan/flops.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/training_plan.h"
#include "csrc/train/evaluate.h"
#include "csrc/train/generator.h"
#include "csrc/train/gpu_telemetry.h"
#include "csrc/train/metrics.h"
#include "csrc/train/question_evaluator.h"
#include "csrc/train/slow_rank_watch.h"
#include "csrc/train/step.h"
#include "csrc/train/weight_health.h"

namespace memphis {

// What a run finds out about itself and tells: the log's lines of steps and the live one,
// metrics.jsonl, validation, questions, samples of text, routing, slow ranks, GPUs. Every rank makes the
// same calls; the first one speaks.
class RunReports {
 public:
  // What it is of. All must outlive it.
  struct Of {
    const Config& config;
    const TrainingPlan& plan;
    const Mesh& mesh;
    Device device;
    DType compute;
    World& world;
    const Groups& groups;
    const Dataset& dataset;
    const MixtureLoader& loader;
    Grok& model;
    Pipeline& pipeline;
    WeightResidency& residency;
    TrainStep& train_step;
    WeightHealth& health;
    // Throws where run.dir is not this run's any more: asked before each line, on the first rank
    // alone.
    std::function<void()> require_run_dir;
    Stream stream;
  };
  explicit RunReports(const Of& of);

  // Asked again and again, with the same answer on all ranks: whether the run is to stop.
  using GivesUp = std::function<bool()>;

  // What follows a step and is not in metrics.jsonl.
  struct Owed {
    bool validation = false;
    bool evaluation = false;
    bool sample = false;
    bool any() const { return validation || evaluation || sample; }
  };
  // The same on all ranks: what an earlier process was stopped before, after the step that it saved.
  Owed find_owed(std::int64_t step);
  // What the config asks for behind `step`.
  Owed due_after(std::int64_t step) const;

  // Of the run from `step` on; again where it has gone back there.
  void open(std::int64_t step);
  // The first lines of a process, which goes on from there.
  void begin(std::int64_t step, std::uint64_t samples);
  void go_back(std::uint64_t samples);
  // Whoever reads the metrics is to know why they end.
  void end(std::int64_t step, bool done, const std::string& reason);

  // Metrics that the first rank cannot write, which all ranks must agree about; and what was wrong.
  bool failed() const { return report_.failed(); }
  void rethrow() const { report_.rethrow(); }
  // The same as a line of the log.
  void say_failure() const;

  // A step that is finished: where it lies in the samples, and what it reports.
  struct Step {
    std::int64_t step = 0;
    std::uint64_t samples_before = 0;
    std::uint64_t samples = 0;
    StepResult result = {};
  };
  void observe(const Step& step);
  // The log's line of it.
  void say(std::int64_t step);
  // What is said of the routing of the last step, of ranks that are slow and of GPUs, where they say
  // something of themselves.
  void describe(const Step& step);

  // Each leaves no line where it was given up.
  void validate(std::int64_t step, const GivesUp& gives_up);
  void evaluate(std::int64_t step, const GivesUp& gives_up);
  void sample(std::int64_t step, const GivesUp& gives_up);

  // At the end: what GPUs took for samples since the begin.
  void say_energy() const;

  Evaluator& evaluator() { return evaluator_.value(); }
  QuestionEvaluator& questions() { return questions_.value(); }

 private:
  void describe_mixture() const;
  // Which epoch of each source the run is in, once that changes.
  void say_epochs(const Step& step) const;
  void describe_routing(const Step& step);
  void describe_gpus(const Step& step);
  MetricsFile::StartRecord start_record(std::int64_t step) const;
  // Since begin().
  double elapsed_seconds() const;

  Of of_;
  bool leads_;
  ModelFlops flops_;
  std::optional<double> peak_;
  Report report_;
  std::vector<ValidationLoader> validation_loaders_;
  std::optional<Evaluator> evaluator_;
  std::optional<QuestionEvaluator> questions_;
  std::optional<InferenceModel> sampler_;
  RouterWatch router_watch_;
  SlowRankWatch slow_rank_watch_;  // on every rank, to the same end
  std::optional<GpuTelemetry> gpu_;
  double joules_said_ = 0;  // of all GPUs, in the last line of them
  std::uint64_t samples_said_ = 0;
  std::uint64_t first_sample_ = 0;
  std::uint64_t samples_ = 0;  // up to the last step that was observed
  double began_at_ = 0;
  MetricsFile::StepRecord record_;  // of the last step that was observed
  double smoothed_seconds_ = 0;
  std::optional<Progress> progress_;
};

}  // namespace memphis
