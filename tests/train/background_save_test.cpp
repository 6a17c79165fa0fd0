// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints that are written while training goes on: the bits of the step that they are of, whatever
// becomes of the weights meanwhile.
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "csrc/checkpoint/checkpoint_saver.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/snapshot.h"
#include "csrc/checkpoint/store.h"
#include "csrc/core/file.h"
#include "csrc/train/trainer.h"
#include "tests/support/error_text.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

using Overrides = std::vector<std::string>;

Overrides with(Overrides overrides, const Overrides& more) {
  overrides.insert(overrides.end(), more.begin(), more.end());
  return overrides;
}

// The tensors of all checkpoints of a run, by step and file.
std::map<std::string, std::string> saved(const fs::path& run_dir) {
  std::map<std::string, std::string> files;
  for (const fs::path& checkpoint : committed_checkpoints(run_dir)) {
    EXPECT_TRUE(verify_checkpoint(checkpoint).manifest) << checkpoint;
    for (const auto& entry : fs::directory_iterator(checkpoint)) {
      if (entry.path().extension() == ".safetensors") {
        files[checkpoint.filename() / entry.path().filename()] = read_text(entry.path());
      }
    }
  }
  return files;
}

class BackgroundSave : public testing::Test {
 protected:
  // Checkpoints of every second of seven steps, all of which stay.
  std::map<std::string, std::string> run(const Layout& layout,
                                         const std::string& name,
                                         const Overrides& more) {
    const std::string yaml = tiny_yaml(directory_);
    const fs::path run_dir = directory_.path() / name;
    on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
      Trainer trainer(parse_config(yaml,
                                   "tiny.yaml",
                                   with(with(layout.overrides, more),
                                        {"run.dir=" + run_dir.string(),
                                         "schedule.steps=7",
                                         "checkpoint.every=2",
                                         "checkpoint.keep=10",
                                         "metrics.validate_every=0",
                                         "metrics.validate_batches=1"}),
                                   Check::machine,
                                   layout.num_ranks),
                      {},
                      world);
      trainer.run();
    });
    return saved(run_dir);
  }

  void expect_same_files(const Layout& layout, const Overrides& more = {}) {
    SCOPED_TRACE(layout.name);
    const auto at_once =
        run(layout, layout.name + "-at-once", with(more, {"checkpoint.background=never"}));
    const auto meanwhile =
        run(layout, layout.name + "-meanwhile", with(more, {"checkpoint.background=required"}));
    const std::size_t num_files = static_cast<std::size_t>(2 * layout.num_ranks);
    EXPECT_EQ(at_once.size(), 4 * num_files) << "steps 2, 4, 6 and 7";
    EXPECT_EQ(meanwhile.size(), at_once.size());
    for (const auto& [name, bytes] : at_once) {
      const auto found = meanwhile.find(name);
      ASSERT_NE(found, meanwhile.end()) << name;
      EXPECT_TRUE(found->second == bytes) << name << " differs";
    }
  }

  TemporaryDirectory directory_;
};

TEST_F(BackgroundSave, HasTheBitsOfTheStepThatItIsOf) {
  for (const int zero : {0, 1, 2, 3}) {
    const std::string name = "zero-" + std::to_string(zero);
    expect_same_files(layout(name, 2, 1, 1, 1, {"parallel.zero=" + std::to_string(zero)}));
  }
  expect_same_files(layout("one", 1, 1, 1, 1), {"batch.micro_batch=2"});
  expect_same_files(layout("tensor", 1, 2, 1, 1));
  expect_same_files(piped("stages", layout("stages", 1, 1, 1, 1), 2, {}));
}

TEST_F(BackgroundSave, HasThemOnADeviceToo) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  // Graphs, but for the step that waits for a copy.
  expect_same_files(layout("device", 1, 1, 1, 1),
                    {"run.device=cuda",
                     "run.graph=required",
                     "precision.compute=bf16",
                     "model.vocab_size=264",
                     "model.num_layers=1",
                     "model.ffn_dim=16",
                     "data.held_out=0",
                     "batch.sequence_length=16",
                     "batch.micro_batch=1",
                     "batch.global_batch=1"});
}

// All that the pieces hold, as they lie now.
std::vector<std::string> bytes_of(const std::vector<StatePiece>& pieces) {
  std::vector<std::string> result;
  for (const StatePiece& piece : pieces) {
    result.emplace_back(static_cast<const char*>(piece.view.data), piece.view.bytes());
  }
  return result;
}

std::vector<std::string> bytes_of(std::span<const TensorSource> sources) {
  std::vector<std::string> result;
  for (const TensorSource& source : sources) {
    std::string& bytes = result.emplace_back();
    source.emit([&](std::span<const std::byte> piece) {
      bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    });
  }
  return result;
}

std::vector<StatePiece> pieces_of(Trainer& trainer) {
  std::vector<StatePiece> pieces = weight_pieces(trainer.parameters());
  for (StatePiece& piece : optimizer_pieces(trainer.parameters(), trainer.optimizer())) {
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

TEST_F(BackgroundSave, WhatIsWrittenAfterwardsIsNotInIt) {
  Trainer trainer(tiny_config(directory_, {"checkpoint.background=never"}), {});
  trainer.step();
  Snapshot snapshot(trainer.parameters(), trainer.optimizer(), trainer.stream());
  const std::vector<StatePiece> pieces = pieces_of(trainer);
  const std::vector<std::string> before = bytes_of(pieces);
  snapshot.take();
  EXPECT_FALSE(snapshot.is_open());
  snapshot.copy();
  for (const StatePiece& piece : pieces) {
    std::memset(piece.view.data, 0xFF, piece.view.bytes());  // NaN
  }
  std::vector<std::string> copied = bytes_of(snapshot.weights());
  for (std::string& each : bytes_of(snapshot.optimizer())) {
    copied.push_back(std::move(each));
  }
  EXPECT_TRUE(copied == before);
  EXPECT_EQ(snapshot.bytes(), snapshot_bytes(trainer.plan().parameters));
}

// A tensor of more bytes than one copy takes, and of no whole number of such.
TEST_F(BackgroundSave, HasAllOfALargeTensorOfADevice) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  Trainer trainer(tiny_config(directory_,
                              {"checkpoint.background=never",
                               "run.device=cuda",
                               "precision.compute=bf16",
                               "model.vocab_size=600008"}),
                  {});
  Snapshot snapshot(trainer.parameters(), trainer.optimizer(), trainer.stream());
  snapshot.take();
  snapshot.wait_until_it_can();
  snapshot.copy();
  std::vector<std::string> copied = bytes_of(snapshot.weights());
  for (std::string& each : bytes_of(snapshot.optimizer())) {
    copied.push_back(std::move(each));
  }
  const std::vector<StatePiece> pieces = pieces_of(trainer);
  ASSERT_EQ(copied.size(), pieces.size());
  std::size_t largest = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    std::string on_device(pieces[i].view.bytes(), '\0');
    device_copy(on_device.data(), pieces[i].view.data, on_device.size(), trainer.stream());
    synchronize(trainer.stream());
    EXPECT_TRUE(copied[i] == on_device) << pieces[i].name;
    largest = std::max(largest, on_device.size());
  }
  EXPECT_GT(largest, std::size_t{64} << 20);
}

// A reader that comes as late as it may: when the optimizer asks.
class LatestReader : public UpdateGate {
 public:
  LatestReader(std::vector<StatePiece> pieces, std::size_t num_segments)
      : pieces_(std::move(pieces)), before_(bytes_of(pieces_)), num_segments_(num_segments) {}

  bool is_open() const override { return num_asked_ == num_segments_; }
  void await(std::size_t segment, Stream /*stream*/) override {
    EXPECT_EQ(segment, num_asked_++);
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      if (pieces_[i].segment >= segment) {
        EXPECT_TRUE(bytes_of(std::vector{pieces_[i]})[0] == before_[i])
            << pieces_[i].name << " has changed before its segment was asked for";
      }
    }
  }
  bool all_changed() const {
    const std::vector<std::string> after = bytes_of(pieces_);
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      if (after[i] == before_[i]) {
        return false;
      }
    }
    return true;
  }

 private:
  std::vector<StatePiece> pieces_;
  std::vector<std::string> before_;
  std::size_t num_segments_;
  std::size_t num_asked_ = 0;
};

TEST_F(BackgroundSave, AStepChangesNothingBeforeItHasAsked) {
  Trainer trainer(
      tiny_config(directory_, {"checkpoint.background=never", "schedule.warmup_steps=0"}), {});
  LatestReader reader(pieces_of(trainer), trainer.plan().parameters.segments.size());
  trainer.optimizer().add_gate(reader);
  EXPECT_TRUE(trainer.optimizer().waits());
  trainer.step();
  EXPECT_TRUE(reader.is_open()) << "it asks for each segment";
  EXPECT_TRUE(reader.all_changed()) << "or this test shows nothing";
  trainer.optimizer().remove_gate(reader);
}

TEST_F(BackgroundSave, AStepWaitsForTheCopyOfItsSegment) {
  Trainer trainer(tiny_config(directory_, {"checkpoint.background=never"}), {});
  Snapshot snapshot(trainer.parameters(), trainer.optimizer(), trainer.stream());
  const std::size_t last = trainer.plan().parameters.segments.size() - 1;
  snapshot.take();
  std::atomic<bool> may_change = false;
  std::thread optimizer([&] {
    for (std::size_t segment = 0; segment <= last; ++segment) {
      snapshot.await(segment, trainer.stream());
    }
    may_change = true;
  });
  EXPECT_FALSE(may_change) << "nothing is copied yet";
  snapshot.copy();
  optimizer.join();
  EXPECT_TRUE(may_change);
  EXPECT_TRUE(snapshot.is_open()) << "until the next one is taken";
}

class Saver : public BackgroundSave {
 protected:
  Saver() : trainer_(tiny_config(directory_, {"checkpoint.background=never"}), {}) {
    fs::create_directories(run_dir());
  }
  fs::path run_dir() const { return directory_.path() / "saver"; }
  CheckpointSaver make(bool in_background) {
    return CheckpointSaver(run_dir(),
                           model_,
                           trainer_.parameters(),
                           trainer_.optimizer(),
                           trainer_.groups(),
                           trainer_.stream(),
                           in_background);
  }

  ModelConfig model_ = tiny_config(directory_).model;
  Trainer trainer_;
};

TEST_F(Saver, IsCommittedThenReadBackThenRotated) {
  CheckpointSaver saver = make(true);
  for (const std::int64_t step : {1, 2, 3}) {
    saver.begin(step, {});
    EXPECT_EQ(saver.begun_step(), step);
    EXPECT_LT(saver.committed_step(), step) << "training goes on before it is";
    saver.commit();
    EXPECT_EQ(saver.committed_step(), step);
    EXPECT_LT(saver.read_back_step(), step);
    saver.finish();
    EXPECT_EQ(saver.read_back_step(), step);
    saver.prune({.newest = 2}, [](const fs::path& /*checkpoint*/) { return Standing::counts; });
  }
  saver.finish();
  EXPECT_EQ(committed_checkpoints(run_dir()),
            (std::vector{run_dir() / "step-00000003", run_dir() / "step-00000002"}));
}

TEST_F(Saver, GoesOnWithoutWaiting) {
  CheckpointSaver saver = make(true);
  saver.begin(1, {});
  while (saver.read_back_step() < 1) {
    saver.advance();
  }
  EXPECT_TRUE(verify_checkpoint(run_dir() / "step-00000001").manifest);
  EXPECT_LE(saver.stalled_seconds(), saver.seconds());
}

TEST_F(Saver, MakesWayForTheNextOne) {
  CheckpointSaver saver = make(true);
  saver.begin(1, {});
  EXPECT_EQ(error_text<ContractError>([&] { saver.begin(2, {}); }).find("one checkpoint is saved"),
            0U);
  saver.make_way(2);
  EXPECT_EQ(saver.read_back_step(), 1);
  saver.begin(2, {});
  saver.finish();
  EXPECT_EQ(newest_step(run_dir()), 2);
}

TEST_F(Saver, WhatIsGivenUpLeavesNothing) {
  CheckpointSaver saver = make(true);
  saver.begin(1, {});
  saver.commit();
  saver.finish();
  saver.begin(2, {});
  saver.cancel();
  EXPECT_EQ(saver.begun_step(), 1);
  EXPECT_FALSE(fs::exists(unfinished_directory(run_dir(), 2)));
  saver.begin(2, {});
  saver.abandon();
  EXPECT_FALSE(fs::exists(unfinished_directory(run_dir(), 2)));
  EXPECT_EQ(newest_step(run_dir()), 1);
  saver.begin(3, {});
  saver.finish();
  EXPECT_EQ(newest_step(run_dir()), 3);
}

// No file of this process may be longer while one lives.
class FileLimit {
 public:
  explicit FileLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileLimit(const FileLimit&) = delete;
  FileLimit& operator=(const FileLimit&) = delete;

 private:
  rlimit before_ = {};
  void (*handler_)(int);
};

TEST_F(Saver, TellsWhatItsThreadMet) {
  CheckpointSaver saver = make(true);
  saver.begin(1, {});
  saver.finish();
  {
    const FileLimit limit(4096);
    saver.begin(2, {});
    const std::string text = error_text<CheckpointError>([&] {
      while (true) {
        saver.advance();
      }
    });
    EXPECT_NE(text.find("safetensors (File too large)"), std::string::npos) << text;
  }
  EXPECT_EQ(saver.begun_step(), 1);
  EXPECT_FALSE(fs::exists(unfinished_directory(run_dir(), 2)));
  EXPECT_TRUE(verify_checkpoint(run_dir() / "step-00000001").manifest);
  saver.begin(3, {});
  saver.finish();
  EXPECT_EQ(saver.read_back_step(), 3);
}

TEST_F(Saver, DamageThatIsReadBackKeepsOlderOnes) {
  CheckpointSaver saver = make(false);
  const auto all_count = [](const fs::path& /*checkpoint*/) { return Standing::counts; };
  for (const std::int64_t step : {1, 2, 3}) {
    saver.begin(step, {});
    EXPECT_EQ(saver.committed_step(), step) << "without a snapshot it is saved at once";
    if (step == 3) {
      std::fstream file(run_dir() / "step-00000003" / kWeightsName,
                        std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(-1, std::ios::end);
      file.put('\x7F');
    }
    saver.finish();
  }
  saver.prune({.newest = 1}, all_count);
  saver.finish();
  EXPECT_EQ(committed_checkpoints(run_dir()).size(), 3U);
  saver.begin(4, {});
  saver.finish();
  saver.prune({.newest = 1}, all_count);
  saver.finish();
  EXPECT_EQ(committed_checkpoints(run_dir()), std::vector{run_dir() / "step-00000004"});
}

// A run may save thousands of times.
TEST_F(Saver, KeepsNothingFromSaveToSave) {
  CheckpointSaver saver = make(true);
  const auto descriptors = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  const auto threads = [] {
    return std::distance(fs::directory_iterator("/proc/self/task"), fs::directory_iterator());
  };
  const auto save = [&](std::int64_t step) {
    saver.begin(step, {});
    saver.finish();
    saver.prune({.newest = 1}, [](const fs::path& /*checkpoint*/) { return Standing::counts; });
    saver.finish();
  };
  save(1);
  const auto num_descriptors = descriptors();
  const auto num_threads = threads();
  const std::uint64_t num_bytes = pinned_bytes() + allocated_bytes();
  for (std::int64_t step = 2; step <= 50; ++step) {
    save(step);
  }
  EXPECT_EQ(descriptors(), num_descriptors);
  // The system may list a thread for a moment after it has ended: some, but not one a save.
  EXPECT_LT(threads(), num_threads + 25);
  EXPECT_EQ(pinned_bytes() + allocated_bytes(), num_bytes);
}

}  // namespace
}  // namespace memphis::test
