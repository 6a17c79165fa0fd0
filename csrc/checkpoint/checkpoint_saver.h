// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/snapshot.h"
#include "csrc/checkpoint/store.h"
#include "csrc/checkpoint/writer.h"
#include "csrc/config/config.h"
#include "csrc/core/background.h"
#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"
#include "csrc/optim/optimizer.h"

namespace memphis {

// Saves checkpoints of a run, each rank its pieces (state_pieces.h), one checkpoint at a time:
//
//   begin()     the directory is made, and a snapshot is taken (snapshot.h)
//   writing     each rank writes its files and makes them durable
//   committing  the first rank, once all have: manifest, rename, COMMIT (writer.h)
//   reading     each rank reads its files back
//   idle
//
// But for begin() it is done by a thread of each rank's own while training goes on. That thread
// speaks to no other rank: between two steps the ranks agree, in advance(), on how far they are. A
// checkpoint is saved once it is committed.
//
// Without a snapshot training stands meanwhile: begin() returns when the checkpoint is committed, and
// advance() when it is read back.
//
// Calls    every rank makes the same.
// Errors   what a rank's thread met is thrown by a later call, as together() throws, and the
//          checkpoint under way is gone; those before it are untouched.
class CheckpointSaver {
 public:
  // All referents must outlive it. `in_background`: with a snapshot, which the optimizer waits for.
  CheckpointSaver(std::filesystem::path run_dir,
                  const ModelConfig& model,
                  const Parameters& parameters,
                  Optimizer& optimizer,
                  const Groups& groups,
                  Stream stream,
                  bool in_background);
  // Waits for this rank's thread. What is not committed by then is removed.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  // What the first rank asks before it makes and before it names a checkpoint, which is not made
  // where it throws: whether the run directory is its own still.
  void ask_before_writing(std::function<void()> check) { check_ = std::move(check); }

  // Waits for a save that is still under way when that of `step` is due, and says so.
  void make_way(std::int64_t step);

  // The state as what is enqueued on the stream leaves it. `manifest` lacks only its step and files.
  // Nothing is under way.
  void begin(std::int64_t step, Manifest manifest);

  // Goes on as far as it can without waiting for disks. Free where nothing is under way.
  void advance();
  // Goes on until what is under way is committed; until nothing is under way.
  void commit();
  void finish();

  // Gives up what is not committed yet: the weights are found to be of no use.
  void cancel();
  // The same of this rank alone, which asks no other: the job has failed.
  void abandon() noexcept;

  // The last step whose checkpoint was begun and not given up, committed, read back; -1: none.
  std::int64_t begun_step() const { return begun_step_; }
  std::int64_t committed_step() const { return committed_step_; }
  std::int64_t read_back_step() const { return read_back_step_; }

  // Of the last one that was committed: seconds since its begin, and those in which training stood.
  double seconds() const { return seconds_; }
  double stalled_seconds() const { return stalled_seconds_; }

  // prune (store.h), by the first rank's thread, which alone asks `judge`. Deletes nothing unless
  // the newest checkpoint was read back and found good.
  void prune(KeepRule keep, Judge judge);

 private:
  enum class Phase : std::uint8_t { idle, writing, committing, reading };
  static constexpr std::size_t kNumFiles = 2;  // of each rank: weights, and the optimizer's state
  using Clock = std::chrono::steady_clock;

  void take(std::int64_t step, Manifest&& manifest);
  // One phase further; false: the disks are not done with this one.
  bool pass_phase(bool waits);
  void start_writing();
  void write();
  void start_committing();
  void start_reading();
  void judge_read_back();
  // Waits for this rank's thread, on every rank, and throws what went wrong there.
  void settle(const char* name);
  void give_up();
  std::string file_name(std::size_t file, int rank) const;

  std::filesystem::path run_dir_;
  const ModelConfig& model_;
  const Parameters& parameters_;
  Optimizer& optimizer_;
  const Groups& groups_;
  Stream stream_;
  bool leads_;
  std::function<void()> check_ = [] {};
  std::optional<Snapshot> snapshot_;

  Phase phase_ = Phase::idle;
  std::int64_t step_ = -1;  // of what is under way
  Manifest manifest_;
  std::optional<CheckpointWriter> writer_;  // the first rank's
  std::array<FileRecord, kNumFiles> own_;
  Verdict verdict_;                  // of this rank's files; at last the first rank's, of all
  std::filesystem::path read_back_;  // what that verdict is of
  std::int64_t begun_step_ = -1;
  std::int64_t committed_step_ = -1;
  std::int64_t read_back_step_ = -1;
  Clock::time_point begun_at_;
  double stall_ = 0;  // seconds of the training thread in what is under way
  double seconds_ = 0;
  double stalled_seconds_ = 0;
  Background background_;  // last: its thread uses the others
};

}  // namespace memphis
