// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/writer.h"

#include <cerrno>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <sys/stat.h>

#include "csrc/checkpoint/store.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/core/write_advice.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr mode_t kDirectoryMode = 0750;  // checkpoints are not for everybody on a shared cluster

[[noreturn]] void throw_write_error(const fs::path& path, int error) {
  throw CheckpointError(
      fmt::format("cannot write {} ({}); what was saved before is untouched, {} and start again",
                  path.string(),
                  system_reason(error),
                  write_advice(error)));
}

// A network file system may rename and then fail to say so: what is there afterwards decides.
void rename_directory(const fs::path& from, const fs::path& to) {
  const int error = rename_path(from, to);
  if (error != 0 && (fs::exists(from) || !fs::exists(to))) {
    throw_write_error(to, error);
  }
}

}  // namespace

CheckpointWriter::CheckpointWriter(const fs::path& run_dir, std::int64_t step, Observer observer)
    : run_dir_(run_dir),
      step_(step),
      observer_(std::move(observer)),
      unfinished_(run_dir / (checkpoint_name(step) + std::string(kUnfinishedSuffix))),
      final_(run_dir / checkpoint_name(step)) {
  require(step >= 0, "a checkpoint's step is not negative");
  if (const int error = make_directories(run_dir); error != 0) {
    throw_write_error(run_dir, error);
  }
  remove_unfinished(run_dir);
  if (fs::exists(fs::symlink_status(final_))) {
    const Verdict verdict = verify_checkpoint(final_);
    if (verdict.manifest) {
      throw CheckpointError(
          fmt::format("{} is there already and valid (saved work is not written over); resume from "
                      "it, or choose another run.dir",
                      final_.string()));
    }
    if (verdict.denied) {
      throw_write_error(final_, EACCES);
    }
    log_warning("replacing {}: {}", final_.string(), verdict.reason);
    if (const int error = remove_tree(final_); error != 0) {
      throw_write_error(final_, error);
    }
  }
  observe("create directory");
  if (const int error = make_directory(unfinished_, kDirectoryMode); error != 0) {
    throw_write_error(unfinished_, error);
  }
}

CheckpointWriter::~CheckpointWriter() {
  if (committed_) {
    return;
  }
  const fs::path& left = renamed_ ? final_ : unfinished_;
  if (const int error = remove_tree(left); error != 0) {
    log_warning("cannot remove {} ({}); remove it by hand", left.string(), system_reason(error));
  }
}

void CheckpointWriter::observe(std::string_view place) const {
  if (observer_) {
    observer_(place);
  }
}

void CheckpointWriter::add_tensors(std::string_view file_name,
                                   std::span<const TensorSource> tensors) {
  check_name(file_name);
  std::vector<TensorSource> observed(tensors.begin(), tensors.end());
  for (TensorSource& tensor : observed) {
    tensor.emit = [this, emit = std::move(tensor.emit)](const ByteSink& sink) {
      emit([&](std::span<const std::byte> piece) {
        observe("write piece");
        sink(piece);
      });
    };
  }
  observe("create file");
  add_file(write_safetensors(unfinished_ / file_name, observed));
}

void CheckpointWriter::check_name(std::string_view name) const {
  require(is_bare_name(name) && name != kManifestName && name != kMarkerName,
          fmt::format("'{}' is not a name for a checkpoint's file", name));
  require(!names_.contains(name), fmt::format("file '{}' is added twice", name));
}

void CheckpointWriter::add_file(FileRecord record) {
  check_name(record.name);
  names_.insert(record.name);
  files_.push_back(std::move(record));
}

fs::path CheckpointWriter::commit(Manifest manifest) {
  require(!renamed_, "a checkpoint is committed once");
  manifest.step = step_;
  manifest.files = files_;
  const std::string text = write_manifest(manifest);
  observe("write manifest");
  {
    DurableWriter writer(unfinished_ / kManifestName);
    writer.write(text);
    writer.close();
  }
  observe("flush directory");
  sync_directory(unfinished_);
  observe("rename");
  rename_directory(unfinished_, final_);
  renamed_ = true;
  observe("flush run directory");
  sync_directory(run_dir_);
  observe("write marker");
  // Whole or absent: a marker that was cut short would look like damage.
  write_text_atomically(final_ / kMarkerName, checksum_text(checksum_of(text)) + "\n");
  committed_ = true;
  // After the marker, for a process that is killed here must find one or the other: with neither it
  // would have to take the run for one whose checkpoints are damaged.
  observe("remove record");
  try {
    remove_nothing_saved(run_dir_);
  } catch (const CheckpointError& failed) {
    log_warning("{}", failed.what());  // the marker says more than the record
  }
  observe("done");
  return final_;
}

}  // namespace memphis
