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

#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/core/memory_pools.h"
#include "csrc/data/dataset.h"
#include "csrc/data/loader.h"
#include "csrc/model/grok.h"
#include "csrc/optim/optimizer.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/training_plan.h"
#include "csrc/train/question_evaluator.h"
#include "csrc/train/replica_check.h"
#include "csrc/train/resume.h"
#include "csrc/train/rotation.h"
#include "csrc/train/run_lock.h"
#include "csrc/train/run_reports.h"
#include "csrc/train/run_saves.h"
#include "csrc/train/step.h"
#include "csrc/train/stop_signal.h"
#include "csrc/train/weight_health.h"

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
  ~Trainer();

  // Trains from the current step to schedule.steps: progress, metrics, validation, samples,
  // checkpoints. Throws Error(ExitCode::preempted) after saving if a signal asked it to stop.
  void run();

  // One step, without what surrounds it in run(). `while_at_work` is called when all of it is on its way
  // to the device.
  StepResult step(const std::function<void()>& while_at_work = {});

  // From now on StepResult::communication tells of the GPU's collectives too.
  void time_communication();

  // Compares the weights of ranks that hold the same, and what each rank holds with what it should be:
  // Error(bad_hardware) on all where some differ. Where that was done after this step already, what is
  // there is compared with what was there then. The next step does the same before it changes anything.
  // On a GPU, ContractError unless run.verify_every or run.recompute_check_every is set, as for
  // check_repeats(): what is compared passes through memory that the plan has for these.
  void verify_replicas();
  // Computes a micro-batch of the last step twice: the same where a rank's gradients differ.
  void check_repeats();

  double validation_loss();
  // Of data.evaluate, of which there is something.
  QuestionEvaluator& questions() { return reports_->questions(); }

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
  const ReplicaCheck& replica_check() const { return *replica_check_; }
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
  // PreflightError where run() has locked a run directory that is not at its path any more: on the
  // first rank, which alone knows, and on all of them.
  void require_held() const;
  void require_run_directory() const;
  // Refuses a checkpoint of another run, or takes its position over.
  void go_on_from(const Chosen& chosen);
  // Of a checkpoint of this step, without its files.
  Manifest describe_state() const;
  // Of this step: beneath the next ones where there is a snapshot, or to its end.
  enum class Save : std::uint8_t { meanwhile, now };
  void save(Save how);
  // Writes a model folder where one is due and not there. Every rank calls.
  void export_model();
  // optimizer.rewind_norm: the state of the last checkpoint again, on samples without those of the
  // step that has just been made, which begin with number `samples`. False where nothing is saved.
  bool is_spike(const StepResult& result) const;
  bool rewind(std::uint64_t samples, const StepResult& result);
  // Moves on to samples that are not passed over.
  void pass_over();
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
  // Does `work` on all ranks. If they lose text that it reads, `settle` and what was learnt is saved
  // first.
  void saving_if_text_is_lost(const std::function<void()>& work,
                              const std::function<void()>& settle);
  void write_trace();

  // Trains, and ends the metrics with the reason why.
  void train(const RunReports::Owed& owed);
  void train_to_the_end(const RunReports::Owed& owed);
  // Finishes steps until so many are under way. What a step reports is read once the next one is on
  // its way, and at once where something that follows the step may depend on it. False: the run has
  // gone back to a checkpoint.
  bool settle(std::size_t num_left);
  // What comes between two steps, the first of which is finished: lines, checks, validation, samples,
  // saves.
  void follow_step(bool save_is_due);
  void report_what_is(const RunReports::Owed& owed);
  // Why this rank would stop, or 0: a signal, which may have reached some ranks and not others, or
  // what only the first one knows. All stop, or none.
  std::int64_t reason_to_stop() const;
  std::int64_t agree_to_stop();
  [[noreturn]] void save_and_stop();

  std::unique_ptr<World> own_world_;  // of the only rank
  World& world_;
  Config config_;
  Device device_;
  std::string products_;  // who multiplies
  Mesh mesh_;
  DType compute_;
  bool graphs_;                                 // of steps
  std::vector<MemoryPool> free_before_groups_;  // of the device
  Groups groups_;
  bool leads_;  // writes what the job writes once
  Dataset dataset_;
  OwnedStream stream_;
  bool times_gpu_ = false;
  TrainingPlan plan_;  // for the memory that is left beside all of the above but groups
  Rotation rotation_;
  WeightHealth health_;
  std::optional<MixtureLoader> training_loader_;
  std::optional<Parameters> parameters_;
  std::optional<WeightResidency> residency_;
  std::optional<Arena> activations_arena_;
  std::optional<Arena> workspace_arena_;
  Activations activations_;
  std::vector<MicroBatch> slots_;
  std::optional<Grok> model_;
  std::optional<Pipeline> pipeline_;
  std::optional<Optimizer> optimizer_;
  std::optional<RunSaves> saves_;
  std::optional<TrainStep> train_step_;
  std::optional<ReplicaCheck> replica_check_;
  std::optional<RunReports> reports_;
  std::int64_t step_ = 0;
  std::uint64_t samples_ = 0;
  // Launched and not finished, the first one first; step_ and samples_ are behind the last.
  std::vector<RunReports::Step> under_way_;
  RunReports::Step last_;  // that was finished
  struct Stop {
    std::optional<StopSignal> signal;
    std::int64_t first_step = 0;  // of this process, whose number it began after
    std::int64_t why = 0;
  };
  Stop stop_;                            // while it trains
  std::set<std::uint64_t> passed_over_;  // samples that begin a step's
  std::int64_t rewound_to_ = -1;       // the step of the checkpoint that the run last went back to
  std::int64_t num_rewinds_ = 0;       // to that one
  std::int64_t verified_step_ = -1;    // whose weights were last compared
  std::int64_t newest_step_ = -1;      // in run.dir, when a checkpoint was chosen
  std::weak_ptr<const RunLock> lock_;  // of the first rank, while run() has it
};

}  // namespace memphis
