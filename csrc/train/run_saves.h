// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "csrc/checkpoint/checkpoint_saver.h"
#include "csrc/checkpoint/manifest.h"
#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/core/error.h"
#include "csrc/data/tokenizer.h"
#include "csrc/model/groups.h"
#include "csrc/model/weight_residency.h"
#include "csrc/optim/optimizer.h"
#include "csrc/plan/training_plan.h"
#include "csrc/train/rotation.h"
#include "csrc/train/save_times.h"
#include "csrc/train/weight_health.h"

namespace memphis {

// What a disk does, and not the job: it is no reason to lose the run.
bool is_of_files(const Error& error);

// What a run keeps of its weights: checkpoints beneath its steps and at its end, tried again where a
// disk fails, and the older ones that they make superfluous; model folders; and the clocks that say
// when. Every rank makes the same calls.
class RunSaves {
 public:
  // What it is of. All must outlive it.
  struct Of {
    const Config& config;
    const TrainingPlan& plan;
    DType compute;
    const Groups& groups;
    WeightResidency& residency;
    Optimizer& optimizer;
    const Tokenizer* tokenizer;  // null: ids stand for no known text
    Rotation& rotation;
    WeightHealth& health;
    // Throws where run.dir is not this run's any more: asked on the first rank alone.
    std::function<void()> require_run_dir;
    Stream stream;
  };
  explicit RunSaves(const Of& of);

  // The checkpoint that the run goes on from.
  void go_on_from(std::int64_t step) { saved_step_ = step; }
  // The newest step that is saved; -1: none.
  std::int64_t saved_step() const { return saved_step_; }
  // Whether it is saved, or being saved.
  bool has(std::int64_t step) const { return saved_step_ == step || saver_.begun_step() == step; }

  // Begins a save of the state as what is enqueued leaves it, once the one before is done; `manifest`
  // lacks only its step and files. One that is ended here must succeed; of others a failure is
  // forgiven checkpoint.max_failures times in a row.
  void begin(std::int64_t step, const Manifest& manifest);
  void save(std::int64_t step, const Manifest& manifest);
  // Goes on with what is under way as far as disks are; to its end, forgiving or not.
  void advance();
  void finish();
  void finish_or_throw();
  // All ranks are here: what is being saved are the weights that have just shown what they are.
  void give_up();
  // This rank's own end.
  void abandon() noexcept { saver_.abandon(); }

  // Deletes what the last save has made superfluous, once its weights are known to be well.
  void rotate();

  // Begins to keep run.time_limit, the scheduler's limit and checkpoint.every: auto, on the first
  // rank.
  void watch_the_clock(int num_ranks);
  void stepped(double seconds);
  // Whether checkpoint.every: auto asks for a save, and the time for the run's end. Of the first rank.
  bool interval_is_over() const;
  bool time_is_up() const;
  const std::optional<TimeLimit>& time_limit() const { return time_limit_; }

  // run.export_every: whether it asks for a model folder of `step`, and whether that is not there.
  bool export_is_due(std::int64_t step) const;
  bool owes_export(std::int64_t step);
  // Writes it. What a disk does to it is said, and nothing else is lost.
  void export_model(std::int64_t step);

  // Of a checkpoint, of all ranks.
  std::uint64_t num_bytes() const;

 private:
  std::filesystem::path export_folder(std::int64_t step) const;
  // Does work of the saver on what is under way, and takes note of what has come of it.
  template <class Work>
  void forgiving(const Work& work);
  void start(std::int64_t step, const Manifest& manifest);
  void note_saved();
  bool forgives(const Error& error);

  Of of_;
  bool leads_;
  CheckpointSaver saver_;
  std::optional<SaveInterval> interval_;  // of checkpoint.every: auto
  std::optional<TimeLimit> time_limit_;
  std::int64_t saved_step_ = -1;
  std::int64_t saving_samples_ = 0;  // the position of what is being saved
  std::int64_t failed_saves_ = 0;    // in a row
  std::int64_t rotated_step_ =
      -1;  // whose checkpoint has made older ones superfluous, if it is well
};

}  // namespace memphis
