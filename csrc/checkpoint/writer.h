// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/safetensors.h"

namespace memphis {

// Saves one checkpoint so that at every instant, whatever ends the process or the machine, the run
// directory holds the previous checkpoint whole, or this one whole, or both:
//
//   1. each file written, summed and flushed in step-N.tmp/
//   2. manifest.json written and flushed, the directory flushed
//   3. step-N.tmp renamed to step-N, the run directory flushed
//   4. COMMIT appears whole, flushed with the directory
//   5. the record that nothing was ever saved goes, if it is there (store.h)
//
// The marker and not the rename commits, because not every file system renames atomically. One
// process owns the writer; others may write files into directory() and have them added by their
// records.
//
// Errors      CheckpointError with the system's reason (a full disk, say), after which the
//             destructor removes what this writer made; the previous checkpoints are untouched.
class CheckpointWriter {
 public:
  // Told each time when the next instruction changes what is on disk, with a word for the place.
  using Observer = std::function<void(std::string_view)>;

  // Removes what an interrupted save left, and a checkpoint of the same step that is not valid.
  // CheckpointError if there is a valid one of that step.
  CheckpointWriter(const std::filesystem::path& run_dir, std::int64_t step, Observer observer = {});
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Where files are written until commit().
  const std::filesystem::path& directory() const { return unfinished_; }

  void add_tensors(std::string_view file_name, std::span<const TensorSource> tensors);

  // A file that another process has written into directory() and made durable.
  void add_file(FileRecord record);

  // `manifest` with its step and files as this writer knows them. Returns the checkpoint's
  // directory.
  std::filesystem::path commit(Manifest manifest);

 private:
  void observe(std::string_view place) const;
  void check_name(std::string_view name) const;

  std::filesystem::path run_dir_;
  std::int64_t step_;
  Observer observer_;
  std::filesystem::path unfinished_;
  std::filesystem::path final_;
  std::vector<FileRecord> files_;
  std::set<std::string, std::less<>> names_;  // of these: a large job has very many
  bool renamed_ = false;
  bool committed_ = false;
};

}  // namespace memphis
