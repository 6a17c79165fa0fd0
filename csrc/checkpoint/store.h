// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/checkpoint/manifest.h"
#include "csrc/config/config.h"

// Checkpoints of a run: run.dir/step-00000420/ with safetensors files, manifest.json and COMMIT.
//
// One is valid only if all of this agrees: COMMIT holds the checksum of manifest.json, which holds
// the size and checksum of every other file. There is no pointer to the newest: the directory is
// read, so nothing can point at what is not there. writer.h makes them.
namespace memphis {

constexpr std::string_view kManifestName = "manifest.json";
constexpr std::string_view kMarkerName = "COMMIT";
// Of a directory that is being written or deleted; whoever finds one may remove it.
constexpr std::string_view kUnfinishedSuffix = ".tmp";

// "step-00000420"; longer beyond eight digits.
std::string checkpoint_name(std::int64_t step);

// Where the files of that checkpoint are written until it is committed.
std::filesystem::path unfinished_directory(const std::filesystem::path& run_dir, std::int64_t step);

// The outcome of reading a checkpoint back, every byte of it and from the device where the system
// allows it.
struct Verdict {
  std::optional<Manifest> manifest;  // of a valid one
  std::string reason;                // why it is not
};
Verdict verify_checkpoint(const std::filesystem::path& directory);

// Its two halves: the marker and the manifest, and files that the manifest lists, of which the
// result says why one is not as its record; empty if all are.
Verdict verify_manifest(const std::filesystem::path& directory);
std::string verify_files(const std::filesystem::path& directory, std::span<const FileRecord> files);

// How checkpoints are read back; read_back.h has a way for many ranks.
using Verify = std::function<Verdict(const std::filesystem::path&)>;

struct Found {
  std::filesystem::path path;
  Manifest manifest;
};

struct Rejected {
  std::filesystem::path path;
  std::string reason;
};

struct Scan {
  std::optional<Found> newest;
  std::vector<Rejected> rejected;  // those newer than it, newest first; all if there is none
};

// Reads checkpoints back, newest first, until one is valid. A run directory that does not exist
// holds none. CheckpointError if it cannot be read.
Scan find_newest_valid(const std::filesystem::path& run_dir,
                       const Verify& verify = verify_checkpoint);

// The step of the newest checkpoint there, valid or not, by its name; -1 if there is none.
std::int64_t newest_step(const std::filesystem::path& run_dir);

// What run.resume makes of a run directory; logs what is chosen and why newer ones are not.
//   auto      the newest valid one; nothing if nothing was ever saved or logged there
//   required  the newest valid one
//   never     nothing
// Never a silent start from scratch and never over saved work: CheckpointError where auto or
// required finds no valid one, ConfigError where never finds any.
std::optional<Found> choose_checkpoint(const std::filesystem::path& run_dir,
                                       Resume resume,
                                       const Verify& verify = verify_checkpoint);

// Deletes all but the newest `keep` checkpoints, and older ones without a marker. First reads the
// newest back, and deletes nothing, with a warning, unless it is valid. A checkpoint that cannot be
// deleted is a warning too: a run does not end for want of tidiness. keep >= 1.
void prune(const std::filesystem::path& run_dir,
           std::int64_t keep,
           const Verify& verify = verify_checkpoint);

// Removes what an interrupted save or prune left, with a log line each.
void remove_unfinished(const std::filesystem::path& run_dir);

// PreflightError unless the file system of `run_dir` (or, before that exists, of its nearest
// ancestor) has room for two checkpoints of that size, because the old one goes only after the new
// one is verified, and a margin.
void require_space(const std::filesystem::path& run_dir, std::uint64_t checkpoint_bytes);

}  // namespace memphis
