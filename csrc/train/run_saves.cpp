// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/run_saves.h"

#include <chrono>
#include <string>
#include <system_error>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/model_folder.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/state_pieces.h"
#include "csrc/checkpoint/store.h"
#include "csrc/comm/launch_environment.h"
#include "csrc/comm/together.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/data/kept_tokenizer.h"
#include "csrc/train/due.h"
#include "csrc/train/run_tokenizer.h"

namespace memphis {
namespace {

constexpr double kSecondsOfHour = 3600;

}  // namespace

bool is_of_files(const Error& error) {
  return error.code() == ExitCode::checkpoint || error.code() == ExitCode::preflight ||
         error.code() == ExitCode::data;
}

RunSaves::RunSaves(const Of& of)
    : of_(of),
      leads_(of.groups.all_host().rank() == 0),
      saver_(of.config.run.dir,
             of.config.model,
             of.residency.parameters(),
             of.optimizer,
             of.groups,
             of.stream,
             of.plan.saves_in_background) {
  saver_.ask_before_writing(of.require_run_dir);
}

template <class Work>
void RunSaves::forgiving(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    if (!forgives(error)) {
      throw;
    }
  }
  note_saved();
}

void RunSaves::begin(std::int64_t step, const Manifest& manifest) {
  forgiving([&] { saver_.make_way(step); });
  rotate();
  forgiving([&] { start(step, manifest); });
}

void RunSaves::save(std::int64_t step, const Manifest& manifest) {
  try {
    saver_.finish();
  } catch (const Error& error) {
    // That the one before fails is no reason not to save this one.
    if (!is_of_files(error)) {
      throw;
    }
  }
  note_saved();
  rotate();
  start(step, manifest);
  finish_or_throw();
}

void RunSaves::start(std::int64_t step, const Manifest& manifest) {
  of_.residency.await_all();
  saving_samples_ = manifest.samples;
  if (interval_) {
    interval_->begun(now_seconds());
  }
  saver_.begin(step, manifest);
}

void RunSaves::advance() {
  forgiving([&] { saver_.advance(); });
}

void RunSaves::finish() {
  forgiving([&] { saver_.finish(); });
}

void RunSaves::finish_or_throw() {
  saver_.finish();
  note_saved();
}

void RunSaves::give_up() {
  try {
    saver_.cancel();
    note_saved();
  } catch (const Error& error) {
    log_error("memphis: {}", error.what());
  }
}

void RunSaves::note_saved() {
  if (saver_.committed_step() <= saved_step_) {
    return;
  }
  saved_step_ = saver_.committed_step();
  failed_saves_ = 0;
  if (time_limit_) {
    time_limit_->saved(saver_.seconds());
  }
  if (interval_) {
    interval_->saved(saver_.stalled_seconds(), saver_.seconds());
  }
  if (leads_) {
    log_info("saved {} in {:.2f} s, of which training stood for {:.3f} s; next sample {}{}",
             (std::filesystem::path(of_.config.run.dir) / checkpoint_name(saved_step_)).string(),
             saver_.seconds(),
             saver_.stalled_seconds(),
             saving_samples_,
             interval_ ? fmt::format("; a save each {:.3g} s, for a failure each {:.3g} h",
                                     interval_->seconds(),
                                     interval_->seconds_between_failures() / kSecondsOfHour)
                       : std::string());
  }
}

bool RunSaves::forgives(const Error& error) {
  const std::int64_t allowed = of_.config.checkpoint.max_failures;
  if (!is_of_files(error) || ++failed_saves_ > allowed) {
    return false;
  }
  if (dynamic_cast<const FailedElsewhere*>(&error) == nullptr) {
    log_error(
        "memphis: a checkpoint is not saved, and training goes on ({} in a row, of which "
        "checkpoint.max_failures allows {}): {}",
        failed_saves_,
        allowed,
        error.what());
  }
  if (interval_) {
    interval_->failed();
  }
  return true;
}

void RunSaves::rotate() {
  if (saver_.read_back_step() <= rotated_step_) {
    return;
  }
  rotated_step_ = saver_.read_back_step();
  if (!of_.health.are_bad()) {
    const CheckpointConfig& rule = of_.config.checkpoint;
    saver_.prune({.newest = rule.keep, .every = rule.keep_every},
                 [&](const std::filesystem::path& path) { return of_.rotation.standing(path); });
  }
}

void RunSaves::watch_the_clock(int num_ranks) {
  const RunConfig& run = of_.config.run;
  const double bytes_of_rank = static_cast<double>(num_bytes()) / num_ranks;
  together(of_.groups.all_host(), "time.limit", [&] {
    if (!leads_) {
      return;
    }
    const double now = now_seconds();
    if (of_.config.checkpoint.every == kAutoInterval) {
      interval_.emplace(run.failure_hours * kSecondsOfHour / num_ranks);
    }
    const auto unix_now = std::chrono::system_clock::now().time_since_epoch();
    const std::optional<TimeEnd> end = end_of_time(run.time_limit,
                                                   now - process_seconds(),
                                                   job_end_time(),
                                                   std::chrono::duration<double>(unix_now).count(),
                                                   now);
    if (end) {
      // Until a save is measured, as configs/machines has it of storage that many share.
      constexpr double kBytesPerSecond = 0.1e9;
      time_limit_.emplace(*end, now, bytes_of_rank / kBytesPerSecond);
      log_info("the run saves and stops ahead of {}, in {:.0f} s", end->why, end->at - now);
    }
  });
}

void RunSaves::stepped(double seconds) {
  if (time_limit_) {
    time_limit_->stepped(seconds);
  }
}

bool RunSaves::interval_is_over() const {
  return leads_ && interval_ && interval_->due(now_seconds());
}

bool RunSaves::time_is_up() const {
  return time_limit_ && time_limit_->reached(now_seconds());
}

std::uint64_t RunSaves::num_bytes() const {
  return checkpoint_bytes(of_.residency.parameters(), of_.optimizer, of_.groups);
}

std::filesystem::path RunSaves::export_folder(std::int64_t step) const {
  return std::filesystem::path(of_.config.run.dir) / "export" / checkpoint_name(step);
}

bool RunSaves::export_is_due(std::int64_t step) const {
  const std::int64_t every = of_.config.run.export_every;
  return step > 0 && (due(step, every) || (every > 0 && step == of_.config.schedule.steps));
}

bool RunSaves::owes_export(std::int64_t step) {
  const bool due_now = export_is_due(step);
  std::error_code ignored;
  const bool there =
      leads_ && due_now &&
      std::filesystem::exists(std::filesystem::symlink_status(export_folder(step), ignored));
  return due_now && largest_of_all(of_.groups.all_host(), there ? 1 : 0, "export.there") == 0;
}

void RunSaves::export_model(std::int64_t step) {
  finish();  // the checkpoint is safe first
  of_.groups.activity().enter("exporting the model");
  const double began = now_seconds();
  of_.residency.await_all();
  const std::filesystem::path folder = export_folder(step);
  ModelFolderWriter writer(folder, of_.config.model, of_.compute, kShardBytes);
  const std::uint64_t checkpoint = num_bytes();
  try {
    together(of_.groups.all_host(), "export.space", [&] {
      if (leads_) {
        std::filesystem::path left = folder;  // of a process that was killed
        left += kUnfinishedSuffix;
        int error = remove_tree(left);
        if (error == 0) {
          error = make_directories(left.parent_path());
        }
        if (error != 0) {
          throw CheckpointError(
              fmt::format("cannot make room for {} ({}); check {} and its permissions",
                          folder.string(),
                          system_reason(error),
                          left.parent_path().string()));
        }
        require_space_beside(of_.config.run.dir, writer.num_bytes(), checkpoint);
      }
    });
    export_from_ranks(writer,
                      of_.residency.parameters(),
                      of_.groups,
                      tokenizer_to_export(of_.tokenizer),
                      of_.stream);
  } catch (const FailedElsewhere& error) {
    if (!is_of_files(error)) {
      throw;
    }
    return;
  } catch (const Error& error) {
    if (!is_of_files(error)) {
      throw;
    }
    log_error("the model of step {} is not exported, and training goes on: {}", step, error.what());
    return;
  }
  if (leads_) {
    log_info("exported {} in {:.2f} s", writer.folder().string(), now_seconds() - began);
  }
}

}  // namespace memphis
