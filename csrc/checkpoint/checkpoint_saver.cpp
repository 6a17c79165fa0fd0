// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/checkpoint_saver.h"

#include <span>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/pieces.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

using Seconds = std::chrono::duration<double>;

// Adds the time that it lives to `seconds`.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += seconds(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  double seconds() const { return Seconds(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace

CheckpointSaver::CheckpointSaver(std::filesystem::path run_dir,
                                 const ModelConfig& model,
                                 const Parameters& parameters,
                                 Optimizer& optimizer,
                                 const Groups& groups,
                                 Stream stream,
                                 bool in_background)
    : run_dir_(std::move(run_dir)),
      model_(model),
      parameters_(parameters),
      optimizer_(optimizer),
      groups_(groups),
      stream_(stream),
      leads_(groups.all_host().rank() == 0),
      background_(in_background ? Background::Where::apart : Background::Where::here) {
  if (in_background) {
    snapshot_.emplace(parameters, optimizer, stream);
    optimizer.add_gate(*snapshot_);
  }
}

CheckpointSaver::~CheckpointSaver() {
  if (snapshot_) {
    optimizer_.remove_gate(*snapshot_);
  }
}

std::string CheckpointSaver::file_name(std::size_t file, int rank) const {
  const int size = groups_.all_host().size();
  if (size == 1) {
    return file == 0 ? kWeightsName : kOptimizerName;
  }
  return piece_file_name(file == 0 ? kWeightsStem : kOptimizerStem, rank, size);
}

void CheckpointSaver::make_way(std::int64_t step) {
  if (phase_ == Phase::idle) {
    return;
  }
  const double since = Seconds(Clock::now() - begun_at_).count();
  double waited = 0;
  {
    const Stopwatch stopwatch(waited);
    while (phase_ != Phase::idle) {
      pass_phase(true);
    }
  }
  if (leads_) {
    log_warning(
        "the checkpoint of step {} was still being written when that of step {} was due, {:.2f} s "
        "after it, and training stood for {:.2f} s; raise checkpoint.every, or give run.dir a "
        "faster disk",
        step_,
        step,
        since,
        waited);
  }
}

void CheckpointSaver::begin(std::int64_t step, Manifest manifest) {
  require(phase_ == Phase::idle, "one checkpoint is saved at a time");
  begun_at_ = Clock::now();
  stall_ = 0;
  take(step, std::move(manifest));
  if (!snapshot_) {
    commit();
  }
}

void CheckpointSaver::take(std::int64_t step, Manifest&& manifest) {
  const Stopwatch stopwatch(stall_);
  together(groups_.all_host(), "checkpoint.begin", [&] {
    background_.wait();  // the first rank deletes older ones
    if (leads_) {
      check_();
      writer_.emplace(run_dir_, step);
    }
  });
  step_ = step;
  begun_step_ = step;
  manifest_ = std::move(manifest);
  phase_ = Phase::writing;
  if (snapshot_) {
    snapshot_->take();
    if (!snapshot_->can_copy()) {
      return;  // pass_phase() asks again
    }
  } else {
    synchronize(stream_);
  }
  start_writing();
}

void CheckpointSaver::start_writing() {
  background_.start([this] { write(); });
}

// By this rank's thread.
void CheckpointSaver::write() {
  if (snapshot_) {
    snapshot_->copy();  // first, before anything that may fail: the optimizer waits for it
  }
  const std::filesystem::path directory = unfinished_directory(run_dir_, step_);
  const int rank = groups_.all_host().rank();
  if (leads_) {
    const std::string text = write_hf_config(model_, parameters_.compute());
    ChecksumWriter config(directory / kConfigName, text.size());
    config.write(text);
    writer_->add_file(config.close());
  }
  if (snapshot_) {
    own_[0] = write_safetensors(directory / file_name(0, rank), snapshot_->weights(), Shown::no);
    own_[1] = write_safetensors(directory / file_name(1, rank), snapshot_->optimizer(), Shown::no);
  } else {
    const PinnedBuffer staging = make_staging(stream_.device);
    own_[0] = write_safetensors(directory / file_name(0, rank),
                                sources_of(weight_pieces(parameters_), staging, stream_));
    own_[1] =
        write_safetensors(directory / file_name(1, rank),
                          sources_of(optimizer_pieces(parameters_, optimizer_), staging, stream_));
  }
}

void CheckpointSaver::start_committing() {
  Communicator& all = groups_.all_host();
  // To the first rank [rank][file][record]; the names follow from the rank.
  std::array<std::int64_t, kNumFiles * kRecordWords> record{};
  for (std::size_t i = 0; i < kNumFiles; ++i) {
    encode(own_[i], std::span(record).subspan(i * kRecordWords, kRecordWords));
  }
  const std::int64_t num_records = leads_ ? all.size() : 1;
  std::vector<std::int64_t> records(record.size() * static_cast<std::size_t>(num_records));
  std::vector<std::int64_t> send_rows(static_cast<std::size_t>(all.size()), 0);
  send_rows[0] = 1;
  const std::vector<std::int64_t> recv_rows(send_rows.size(), leads_ ? 1 : 0);
  const auto view_of = [&](auto& values, std::int64_t num_rows) {
    return TensorView(values.data(),
                      {num_rows, static_cast<std::int64_t>(record.size())},
                      DType::i64,
                      Device::cpu);
  };
  all.run(AllToAll{.y = view_of(records, num_records),
                   .x = view_of(record, 1),
                   .send_rows = send_rows,
                   .recv_rows = recv_rows},
          "checkpoint.records",
          {});
  if (!leads_) {
    return;
  }
  for (int rank = 0; rank < all.size(); ++rank) {
    for (std::size_t i = 0; i < kNumFiles; ++i) {
      const std::size_t at = record.size() * static_cast<std::size_t>(rank) + i * kRecordWords;
      writer_->add_file(
          decode_record(file_name(i, rank), std::span(records).subspan(at, kRecordWords)));
    }
  }
  background_.start([this] {
    check_();
    writer_->commit(manifest_);
  });
}

void CheckpointSaver::start_reading() {
  const std::filesystem::path directory = run_dir_ / checkpoint_name(step_);
  background_.start([this, directory] {
    verdict_ = leads_ ? verify_manifest(directory) : Verdict{};
    std::vector<FileRecord> files(own_.begin(), own_.end());
    if (verdict_.manifest) {
      for (const FileRecord& file : verdict_.manifest->files) {
        if (file.name == kConfigName) {
          files.push_back(file);
        }
      }
    }
    if (verdict_.reason.empty()) {
      verify_files(directory, files, verdict_);
    }
  });
}

// The first rank that has found damage tells all.
void CheckpointSaver::judge_read_back() {
  Communicator& all = groups_.all_host();
  const std::int64_t size = all.size();
  const std::int64_t found =
      largest_of_all(all, verdict_.reason.empty() ? 0 : size - all.rank(), "checkpoint.read_back");
  if (found > 0) {
    verdict_.reason =
        text_of_rank(all, static_cast<int>(size - found), verdict_.reason, "checkpoint.read_back");
    verdict_.manifest.reset();
  }
  read_back_ = run_dir_ / checkpoint_name(step_);
  read_back_step_ = step_;
}

void CheckpointSaver::settle(const char* name) {
  try {
    together(groups_.all_host(), name, [&] { background_.wait(); });
  } catch (...) {
    give_up();
    throw;
  }
}

void CheckpointSaver::give_up() {
  phase_ = Phase::idle;
  begun_step_ = committed_step_;
  writer_.reset();
}

bool CheckpointSaver::pass_phase(bool waits) {
  const Stopwatch stopwatch(stall_);
  Communicator& all = groups_.all_host();
  if (phase_ == Phase::writing && !background_.started() && (waits || snapshot_->can_copy())) {
    snapshot_->wait_until_it_can();
    start_writing();
  }
  if (phase_ == Phase::reading && !background_.started()) {
    start_reading();
  }
  if (!waits) {
    const bool waits_for_copies = phase_ == Phase::writing && !background_.started();
    const bool busy = waits_for_copies || (background_.started() && !background_.done());
    if (largest_of_all(all, busy ? 1 : 0, "checkpoint.progress") != 0) {
      return false;
    }
  }
  switch (phase_) {
    case Phase::idle:
      break;
    case Phase::writing:
      settle("checkpoint.write");
      start_committing();
      phase_ = Phase::committing;
      break;
    case Phase::committing:
      settle("checkpoint.commit");
      writer_.reset();
      committed_step_ = step_;
      seconds_ = Seconds(Clock::now() - begun_at_).count();
      stalled_seconds_ =
          stall_ + stopwatch.seconds() + (snapshot_ ? snapshot_->awaited_seconds() : 0);
      phase_ = Phase::reading;
      break;
    case Phase::reading:
      settle("checkpoint.read");
      judge_read_back();
      phase_ = Phase::idle;
      break;
  }
  return true;
}

void CheckpointSaver::advance() {
  const bool stands = !snapshot_;
  while (phase_ != Phase::idle && pass_phase(stands)) {
  }
}

void CheckpointSaver::commit() {
  while (phase_ == Phase::writing || phase_ == Phase::committing) {
    pass_phase(true);
  }
}

void CheckpointSaver::finish() {
  while (phase_ != Phase::idle) {
    pass_phase(true);
  }
  settle("checkpoint.prune");
}

void CheckpointSaver::cancel() {
  if (phase_ != Phase::writing) {
    finish();
    return;
  }
  // The first rank removes the directory once no other writes into it.
  together(groups_.all_host(), "checkpoint.cancel", [&] {
    if (!leads_) {
      abandon();
    }
  });
  abandon();
}

void CheckpointSaver::abandon() noexcept {
  try {
    background_.wait();
  } catch (...) {
    // What has failed the job is what is said.
  }
  give_up();
}

void CheckpointSaver::prune(KeepRule keep, Judge judge) {
  if (!leads_) {
    return;
  }
  require(phase_ == Phase::idle, "older checkpoints go when none is under way");
  background_.wait();
  background_.start([this, keep, judge = std::move(judge)] {
    const Verify verify = [this](const std::filesystem::path& path) {
      return path == read_back_ ? verdict_ : verify_checkpoint(path);
    };
    try {
      memphis::prune(run_dir_, keep, judge, verify);
    } catch (const CheckpointError& error) {
      log_warning("older checkpoints stay: {}", error.what());
    }
  });
}

}  // namespace memphis
