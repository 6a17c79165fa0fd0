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
  bool denied = false;               // this process may not read it: it may be valid all the same
};
Verdict verify_checkpoint(const std::filesystem::path& directory);

// Its two halves: the marker and the manifest, and files that the manifest lists, of which the
// second says why one is not as its record, and leaves `verdict` as it is if all are.
Verdict verify_manifest(const std::filesystem::path& directory);
void verify_files(const std::filesystem::path& directory,
                  std::span<const FileRecord> files,
                  Verdict& verdict);

// The first half, and whether the files are there and have their sizes: what can be told without
// reading them.
Verdict verify_sizes(const std::filesystem::path& directory);

// How checkpoints are read back; read_back.h has a way for many ranks.
using Verify = std::function<Verdict(const std::filesystem::path&)>;

struct Found {
  std::filesystem::path path;
  Manifest manifest;
};

struct Rejected {
  std::filesystem::path path;
  std::string reason;
  // What a job that ended within a save or a deletion leaves, and the next one removes: no damage.
  bool unfinished = false;
};

struct Scan {
  std::optional<Found> newest;
  std::vector<Rejected> rejected;  // those newer than it, newest first; all if there is none
};

// Reads checkpoints back, newest first, until one is valid. A run directory that does not exist
// holds none. CheckpointError if it cannot be read, or if a checkpoint may not be: that is no reason
// to go on from an older one. The run may still be at it: what went while it was read is not
// rejected, and where it was the last, what has come since is read.
Scan find_newest_valid(const std::filesystem::path& run_dir,
                       const Verify& verify = verify_checkpoint);

// The step of the newest checkpoint there, valid or not, by its name; -1 if there is none.
std::int64_t newest_step(const std::filesystem::path& run_dir);

// A run directory says so in a file of this name while nothing has ever been committed in it: a run
// that ended so early may start over, and one whose checkpoints are gone may not. Without the file
// nothing is known.
constexpr std::string_view kNothingSavedName = "nothing-saved-yet";
// Beside a checkpoint that was committed, valid or damaged, it says nothing any more: it goes right
// after the first commit. Durable on return. CheckpointError if it cannot be written or removed.
void note_nothing_saved(const std::filesystem::path& run_dir);
void remove_nothing_saved(const std::filesystem::path& run_dir);

// What run.resume makes of a run directory; logs what is chosen and why newer ones are not.
//   auto      the newest valid one; nothing, with a line, if nothing was ever saved there
//   required  the newest valid one
//   never     nothing
// Never a silent start from scratch and never over saved work: CheckpointError where auto or
// required finds no valid one, ConfigError where never finds any.
std::optional<Found> choose_checkpoint(const std::filesystem::path& run_dir,
                                       Resume resume,
                                       const Verify& verify = verify_checkpoint);

// What rotation makes of a committed checkpoint.
//   counts   of this run, and good: the newest `keep` of them stay
//   spare    of this run, and not worth keeping beside newer ones that count
//   foreign  not known to be of this run: stays
enum class Standing : std::uint8_t { counts, spare, foreign };
using Judge = std::function<Standing(const std::filesystem::path&)>;

// What stays of those that count: the newest so many, of which there is one at least, and the first
// from each multiple of `every` steps on; 0: none of these.
struct KeepRule {
  std::int64_t newest = 1;
  std::int64_t every = 0;
};

// Deletes checkpoints but the newest, those that count and that `keep` says, and foreign ones; also
// what has no marker. First reads the newest back, and deletes nothing, with a warning, unless it is valid;
// nothing, too, unless it counts. A checkpoint that cannot be deleted is a warning: a run does not
// end for want of tidiness.
void prune(const std::filesystem::path& run_dir,
           const KeepRule& keep,
           const Judge& judge,
           const Verify& verify = verify_checkpoint);

// The committed checkpoints there, newest first, valid or not.
std::vector<std::filesystem::path> committed_checkpoints(const std::filesystem::path& run_dir);

// Removes what an interrupted save or prune left, with a log line each.
void remove_unfinished(const std::filesystem::path& run_dir);

// Room for two checkpoints of that size, and a margin.
std::uint64_t space_needed(std::uint64_t checkpoint_bytes);

// PreflightError unless the file system of `run_dir` (or, before that exists, of its nearest
// ancestor) has room for two checkpoints of that size, because the old one goes only after the new
// one is verified, and a margin.
void require_space(const std::filesystem::path& run_dir, std::uint64_t checkpoint_bytes);

// PreflightError unless there is room for so many bytes of something else, and for the next
// checkpoint beside it.
void require_space_beside(const std::filesystem::path& run_dir,
                          std::uint64_t bytes,
                          std::uint64_t checkpoint_bytes);

}  // namespace memphis
