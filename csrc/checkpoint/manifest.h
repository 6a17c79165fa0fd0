// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/checkpoint/checksum.h"

namespace memphis {

// What a checkpoint says of itself: all that a run needs beside its tensors to go on as if it had
// never stopped.
struct Manifest {
  std::int64_t step = 0;
  std::int64_t samples = 0;         // global sample counter: the next sample's index
  std::int64_t seed = 0;            // with the counters above, the whole state of every generator
  std::string dataset_fingerprint;  // of the data that `samples` counts in
  // Of data.validation; empty where that is the held-out end of the training text, or nothing, and
  // where a version wrote it that did not say.
  std::string validation_fingerprint = {};
  // Of the tokenizer; "none" where ids stood for no known text, empty where a version wrote it that
  // knew bytes alone.
  std::string tokenizer_fingerprint = {};
  // What the run knows of its losses (csrc/train/loss_watch.h): the lowest that it has held, 0 where
  // it is not known, the last ones, the oldest first, the step since which it has exploded, 0 where it
  // has not, and how many losses in a row were calm since.
  double loss_reference = 0;
  std::vector<double> loss_window = {};
  std::int64_t exploded_at = 0;
  std::int64_t calm_steps = 0;
  // Steps that were left out for their gradients' sake, of all and of the last ones.
  std::int64_t skipped_steps = 0;
  std::int64_t skipped_in_a_row = 0;
  // Who multiplied, matmul_library() of kernels/matmul, as far as rank 0 knows; empty where a version
  // wrote it that did not say.
  std::string products = {};
  std::string config;             // resolved, as YAML
  std::vector<FileRecord> files;  // the tensors

  bool operator==(const Manifest&) const = default;
};

// JSON. Checksums are texts of 16 digits: numbers of 64 bits do not survive every reader.
std::string write_manifest(const Manifest& manifest);

// CheckpointError, naming `path`, for anything that write_manifest does not write: another format
// version, a missing, unknown or repeated key, a file name that is not bare.
Manifest read_manifest(std::string_view text, const std::filesystem::path& path);

// True for [A-Za-z0-9._-]+ that does not begin with a dot: such a name cannot leave its directory.
bool is_bare_name(std::string_view name);

}  // namespace memphis
