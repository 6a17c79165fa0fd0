// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "csrc/checkpoint/checkpoint_saver.h"
#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/data/dataset.h"
#include "csrc/data/loader.h"
#include "csrc/model/grok.h"
#include "csrc/optim/optimizer.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/training_plan.h"
#include "csrc/train/evaluate.h"
#include "csrc/train/generator.h"
#include "csrc/train/gpu_telemetry.h"
#include "csrc/train/loss_watch.h"
#include "csrc/train/metrics.h"
#include "csrc/train/question_evaluator.h"
#include "csrc/train/replica_check.h"
#include "csrc/train/resume.h"
#include "csrc/train/rotation.h"
#include "csrc/train/run_lock.h"
#include "csrc/train/save_times.h"
#include "csrc/train/slow_rank_watch.h"
#include "csrc/train/step.h"

namespace memphis {

// Owner of everything that a run holds, in order of construction: data, arenas, model, optimizer.
// The constructor chooses the checkpoint, allocates what the plan says and loads or draws the
// weights; it writes nothing.
class Trainer {
 public:
  // `default_roots` is the text to train on where the config names none. The config's degrees are
  // resolved for the ranks of `world`; every rank constructs a trainer and makes the same calls.
  Trainer(const Config& config, const std::vector<std::string>& default_roots, World& world);

  // The only rank.
  Trainer(const Config& config, const std::vector<std::string>& default_roots);

  // Trains from the current step to schedule.steps: progress, metrics, validation, samples,
  // checkpoints. Throws Error(ExitCode::preempted) after saving if a signal asked it to stop.
  void run();

  // One step, without what surrounds it in run().
  StepResult step();

  // From now on StepResult::communication tells of the GPU's collectives too.
  void time_communication();

  // Compares the weights of ranks that hold the same: Error(bad_hardware) on all where some differ.
  void verify_replicas();
  // Computes a micro-batch of the last step twice: the same where a rank's gradients differ.
  void check_repeats();

  double validation_loss();
  // Of data.evaluate, of which there is something.
  QuestionEvaluator& questions() { return *questions_; }

  std::int64_t current_step() const { return step_; }
  std::uint64_t samples() const { return samples_; }
  const TrainingPlan& plan() const { return plan_; }
  // With all weights there that a rank has as a whole.
  Parameters& parameters() {
    residency_->await_all();
    return *parameters_;
  }
  WeightResidency& residency() { return *residency_; }
  Optimizer& optimizer() { return *optimizer_; }
  const Groups& groups() const { return groups_; }
  // Of the last micro-batch, as its backward pass left them.
  const Activations& activations() const { return activations_; }
  Stream stream() const { return stream_.view(); }

 private:
  Trainer(const Config& config,
          const std::vector<std::string>& default_roots,
          std::unique_ptr<World> own_world);
  // `all` is every rank, in host memory.
  Trainer(const Config& config,
          const std::vector<std::string>& default_roots,
          World& world,
          std::unique_ptr<Communicator> all);
  // Keeps other jobs out of it as long as the result lives, which is the first rank's.
  [[nodiscard]] std::unique_ptr<RunLock> prepare_run_directory() const;
  // Refuses a checkpoint of another run, or takes its position over.
  void go_on_from(const Chosen& chosen);
  // Of this step: beneath the next ones where there is a snapshot, or to its end. A failure of the
  // first kind is forgiven checkpoint.max_failures times.
  enum class Save : std::uint8_t { meanwhile, now };
  void save(Save how);
  // Work of the saver on what is under way, and what has come of it.
  template <class Work>
  void go_on_saving(const Work& work);
  void note_saved();
  bool forgives(const Error& error);
  void give_up_save();
  // optimizer.rewind_norm: the state of the last checkpoint again, on samples without those of the
  // step that has just been made, which begin with number `samples`. False where nothing is saved.
  bool is_spike(const StepResult& result) const;
  bool rewind(std::uint64_t samples, const StepResult& result);
  // Moves on to samples that are not passed over.
  void pass_over();
  // Writes a model folder where one is due and not there; what a disk does to it is said, and
  // nothing else is lost. Every rank calls.
  void export_model();
  bool export_is_due() const;
  bool owes_export();
  std::filesystem::path export_folder() const;
  // What checkpoint.every: auto asks for; of the first rank.
  bool save_interval_is_over() const;
  // Deletes what the last save has made superfluous, once its weights are known to be well.
  void rotate();
  // A step that is launched and not finished, and the position in the samples before and after it.
  struct UnderWay {
    std::int64_t step;
    std::uint64_t samples_before;
    std::uint64_t samples;
  };
  // Of train_step_, the prepared step and the first that is under way. DivergedError leaves the run
  // where the step that diverged began.
  void launch();
  StepResult finish();
  template <class Reads>
  auto reading(const Reads& reads);
  // Whether the step is to be finished before the next one is prepared.
  bool is_read_at_once(std::int64_t step) const;
  // Does what reads a step; where that has diverged, the error says what there is to go back to.
  void watching(const std::function<void()>& reads);
  // What the loss of a step says of the run.
  void watch(std::int64_t step, const StepResult& result);
  // As the first rank knows, on every rank. Every rank calls.
  bool weights_have_exploded();
  // Asked again and again, with the same answer on all ranks: whether the run is to stop.
  using GivesUp = std::function<bool()>;
  void describe_mixture() const;
  // Which epoch of each source the run is in, once that changes.
  void say_epochs(const UnderWay& step);
  // None leaves a line where it was given up.
  void validate(Report& report, double elapsed_seconds, const GivesUp& gives_up);
  void evaluate(Report& report, const GivesUp& gives_up);
  void sample(Report& report, const GivesUp& gives_up);

  // What follows a step and is not in metrics.jsonl.
  struct Owed {
    bool validation = false;
    bool evaluation = false;
    bool sample = false;
  };
  // The same on all ranks: what an earlier process was stopped before, after the step that it
  // saved.
  Owed find_owed();
  // Does `work` on all ranks. If they lose text that it reads, `settle` and what was learnt is saved
  // first.
  void saving_if_text_is_lost(const std::function<void()>& work,
                              const std::function<void()>& settle);
  // What surrounds the steps: progress, metrics, validation, samples, checkpoints.
  void train(const Owed& owed);
  void train(Report& report, const Owed& owed);
  // Of the run from this step on, on the first rank.
  void open(Report& report);
  // Begins to keep run.time_limit, the scheduler's limit and checkpoint.every: auto.
  void watch_the_clock();
  void write_trace();
  MetricsFile::StartRecord start_record(const ModelFlops& flops, std::optional<double> peak) const;
  // What is said of the routing of the last step, and of ranks that are slow.
  // What GPUs say of themselves, where they do. Both at the same steps, on every rank.
  void report_gpus(Report& report);
  void report_routing(Report& report, const StepResult& result);

  std::unique_ptr<World> own_world_;  // of the only rank
  World& world_;
  Config config_;
  Device device_;
  Mesh mesh_;
  DType compute_;
  bool graphs_;  // of steps
  Groups groups_;
  bool leads_;  // writes what the job writes once
  Dataset dataset_;
  OwnedStream stream_;
  TrainingPlan plan_;  // for the memory that is left when all of the above is there
  // Of the first rank, which decides for all.
  LossWatch loss_watch_;
  RouterWatch router_watch_;
  SlowRankWatch slow_rank_watch_;  // on every rank, to the same end
  std::optional<GpuTelemetry> gpu_;
  double joules_said_ = 0;  // of all GPUs, in the last line of them
  std::uint64_t samples_said_ = 0;
  Rotation rotation_;
  bool weights_are_bad_ = false;
  std::optional<SaveInterval> save_interval_;  // of checkpoint.every: auto
  std::optional<TimeLimit> time_limit_;
  std::optional<MixtureLoader> training_loader_;
  std::vector<ValidationLoader> validation_loaders_;
  std::optional<Parameters> parameters_;
  std::optional<WeightResidency> residency_;
  std::optional<Arena> activations_arena_;
  std::optional<Arena> workspace_arena_;
  Activations activations_;
  std::vector<MicroBatch> slots_;
  std::optional<Grok> model_;
  std::optional<Pipeline> pipeline_;
  std::optional<Optimizer> optimizer_;
  std::optional<CheckpointSaver> saver_;
  std::optional<TrainStep> train_step_;
  std::optional<ReplicaCheck> replica_check_;
  std::optional<Evaluator> evaluator_;
  std::optional<QuestionEvaluator> questions_;
  std::optional<InferenceModel> sampler_;
  std::int64_t step_ = 0;
  std::uint64_t samples_ = 0;
  std::vector<UnderWay> under_way_;  // the first one first; step_ and samples_ are behind the last
  std::int64_t saved_step_ = -1;
  std::set<std::uint64_t> passed_over_;  // samples that begin a step's
  std::int64_t rewound_to_ = -1;      // the step of the checkpoint that the run last went back to
  std::int64_t num_rewinds_ = 0;      // to that one
  std::uint64_t saving_samples_ = 0;  // the position of what is being saved
  std::int64_t failed_saves_ = 0;     // in a row
  std::int64_t rotated_step_ =
      -1;  // whose checkpoint has made older ones superfluous, if it is well
  std::int64_t verified_step_ = -1;  // whose weights were last compared
  std::int64_t newest_step_ = -1;    // in run.dir, when a checkpoint was chosen
};

}  // namespace memphis
