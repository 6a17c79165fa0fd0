// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/store.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <span>
#include <stdexcept>
#include <system_error>
#include <tuple>
#include <utility>

#include <fcntl.h>
#include <pwd.h>
#include <spdlog/fmt/fmt.h>
#include <sys/stat.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kStepPrefix = "step-";

// A manifest lists files, two of each rank with up to a kilobyte, and holds a config of at most 1 MiB:
// more is not one.
constexpr std::uint64_t kMaxManifestBytes = 256U << 20U;

// Logs, metrics and the resolved config of a long run.
constexpr std::uint64_t kSpaceMarginBytes = 64U << 20U;

// Why a checkpoint is not valid, or not known to be; caught in verify_checkpoint.
class Invalid : public std::runtime_error {
 public:
  explicit Invalid(const std::string& reason, int error_number = 0)
      : std::runtime_error(reason), denied_(error_number == EACCES || error_number == EPERM) {}
  bool denied() const { return denied_; }

 private:
  bool denied_;
};

struct OpenFile {
  Descriptor descriptor;
  std::uint64_t bytes;
};

// Names are opened relative to the open directory and links are not followed: a checkpoint from
// somebody else cannot make this process read outside of it.
OpenFile open_in(const Descriptor& directory, const std::string& name) {
  // O_NONBLOCK: opening a pipe would wait for its writer.
  Descriptor descriptor(
      ::openat(directory.number(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  if (!descriptor.is_open()) {
    const int error_number = errno;
    if (error_number == ENOENT) {
      throw Invalid(name + " is missing");
    }
    if (error_number == ELOOP) {
      throw Invalid(name + " is a symbolic link");
    }
    throw Invalid(fmt::format("{} cannot be opened: {}", name, system_reason(error_number)),
                  error_number);
  }
  struct stat status {};
  if (::fstat(descriptor.number(), &status) != 0 || !S_ISREG(status.st_mode)) {
    throw Invalid(name + " is not a regular file");
  }
  return {.descriptor = std::move(descriptor), .bytes = static_cast<std::uint64_t>(status.st_size)};
}

// Calls use(piece) for the file's bytes, front to back. read() and not a mapping: an I/O error must
// be a reason to reject, not a signal.
template <class Use>
void read_through(const OpenFile& file, const std::string& name, const Use& use) {
  // What fsync has made clean is dropped from the cache, so that the device is read and not the
  // memory that was written from. Advice: where the system declines, the cache is read.
  ::posix_fadvise(file.descriptor.number(), 0, 0, POSIX_FADV_DONTNEED);
  std::vector<std::byte> buffer(std::size_t{1} << 20U);
  while (true) {
    const ssize_t count = ::read(file.descriptor.number(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      const int error_number = errno;
      throw Invalid(fmt::format("{} cannot be read: {}", name, system_reason(error_number)),
                    error_number);
    }
    if (count == 0) {
      return;
    }
    use(std::span<const std::byte>(buffer.data(), static_cast<std::size_t>(count)));
  }
}

std::string read_small(const Descriptor& directory, const std::string& name) {
  const OpenFile file = open_in(directory, name);
  if (file.bytes > kMaxManifestBytes) {
    throw Invalid(fmt::format("{} has {} bytes", name, file.bytes));
  }
  std::string text;
  read_through(file, name, [&](std::span<const std::byte> piece) {
    text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  });
  return text;
}

OpenFile open_sized(const Descriptor& directory, const FileRecord& record) {
  OpenFile file = open_in(directory, record.name);
  if (file.bytes != record.bytes) {
    throw Invalid(fmt::format("{} has {} bytes, not {}", record.name, file.bytes, record.bytes));
  }
  return file;
}

// What is not what was written, by a second reading, which a file that is well does not have.
std::string find_damage(const OpenFile& file, const FileRecord& record) {
  if (::lseek(file.descriptor.number(), 0, SEEK_SET) != 0) {
    return "its bytes";
  }
  BlockChecksums blocks(record.bytes);
  read_through(file, record.name, [&](std::span<const std::byte> piece) { blocks.update(piece); });
  const std::string damage = describe_damage(record, blocks.finish());
  return damage.empty() ? "its bytes" : damage;
}

void check_file(const Descriptor& directory, const FileRecord& record) {
  const OpenFile file = open_sized(directory, record);
  Checksum checksum;
  read_through(
      file, record.name, [&](std::span<const std::byte> piece) { checksum.update(piece); });
  if (checksum.value() != record.xxh3) {
    throw Invalid(fmt::format("{} has checksum {}, not {}: {} changed after it was written",
                              record.name,
                              checksum_text(checksum.value()),
                              checksum_text(record.xxh3),
                              find_damage(file, record)));
  }
}

Descriptor open_directory(const fs::path& path) {
  Descriptor directory = open_path(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!directory.is_open()) {
    const int error_number = errno;
    // O_DIRECTORY turns a link's ELOOP into ENOTDIR.
    throw Invalid(error_number == ENOTDIR || error_number == ELOOP
                      ? "it is not a directory"
                      : "it cannot be opened: " + system_reason(error_number),
                  error_number);
  }
  return directory;
}

Manifest read_committed_manifest(const fs::path& path) {
  const Descriptor directory = open_directory(path);
  const std::string marker = read_small(directory, std::string(kMarkerName));
  const std::string text = read_small(directory, std::string(kManifestName));
  if (marker != checksum_text(checksum_of(text)) + "\n") {
    throw Invalid(fmt::format("{} does not match {}", kManifestName, kMarkerName));
  }
  Manifest manifest = read_manifest(text, path / kManifestName);
  if (checkpoint_name(manifest.step) != path.filename()) {
    throw Invalid(fmt::format("its manifest is of step {}", manifest.step));
  }
  return manifest;
}

// An entry step-* of a run directory.
struct StepEntry {
  fs::path path;
  std::int64_t step = -1;  // -1: not a name that is given here
  bool unfinished = false;
};

StepEntry parse_entry(const fs::path& path) {
  StepEntry entry{.path = path};
  std::string name = path.filename().string();
  if (name.ends_with(kUnfinishedSuffix)) {
    entry.unfinished = true;
    name.resize(name.size() - kUnfinishedSuffix.size());
  }
  std::int64_t step = -1;
  std::from_chars(name.data() + kStepPrefix.size(), name.data() + name.size(), step);
  if (step >= 0 && checkpoint_name(step) == name) {
    entry.step = step;
  }
  return entry;
}

// Newest first.
std::vector<StepEntry> list_entries(const fs::path& run_dir) {
  std::vector<StepEntry> entries;
  std::error_code error;
  for (fs::directory_iterator it(run_dir, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with(kStepPrefix)) {
      entries.push_back(parse_entry(it->path()));
    }
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    throw CheckpointError(fmt::format("cannot read {} ({}); check run.dir and its permissions",
                                      run_dir.string(),
                                      error.message()));
  }
  std::sort(entries.begin(), entries.end(), [](const StepEntry& a, const StepEntry& b) {
    return std::tie(a.step, a.path) > std::tie(b.step, b.path);
  });
  return entries;
}

bool has_metrics(const fs::path& run_dir) {
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(run_dir / "metrics.jsonl", error);
  return !error && bytes > 0;
}

bool warn_unless_removed(const fs::path& path) {
  const int error = remove_tree(path);
  if (error != 0) {
    log_warning("cannot remove {} ({}); remove it by hand", path.string(), system_reason(error));
  }
  return error == 0;
}

// The rename makes it invalid in one step; what a crash leaves of it is then known for what it is.
void remove_checkpoint(const fs::path& path) {
  fs::path unfinished = path;
  unfinished += kUnfinishedSuffix;
  if (const int error = rename_path(path, unfinished); error != 0) {
    log_warning("cannot remove {} ({}); remove it by hand", path.string(), system_reason(error));
  } else if (warn_unless_removed(unfinished)) {
    log_info("removed {}", path.string());
  }
}

bool has_marker(const fs::path& checkpoint) {
  std::error_code error;
  return fs::exists(fs::symlink_status(checkpoint / kMarkerName, error));
}

std::string user_name(uid_t user) {
  const passwd* const entry = ::getpwuid(user);
  return entry == nullptr ? fmt::format("{}", user) : std::string(entry->pw_name);
}

[[noreturn]] void throw_denied(const fs::path& path, const std::string& reason) {
  struct stat status {};
  const bool known = ::stat(path.c_str(), &status) == 0;
  throw CheckpointError(fmt::format(
      "cannot read {}: {} (the checkpoint is not known to be damaged; this process is user {}{}); "
      "let it read the run directory, as with `chmod -R u+rwX` or `chown -R` by its owner, or "
      "start it as that user",
      path.string(),
      reason,
      user_name(::geteuid()),
      known ? ", the owner is " + user_name(status.st_uid) : std::string()));
}

std::string list_reasons(const std::vector<Rejected>& rejected) {
  std::string text;
  for (const Rejected& one : rejected) {
    text +=
        fmt::format("{}{}: {}", text.empty() ? "" : "; ", one.path.filename().string(), one.reason);
  }
  return text.empty() ? "it holds none" : "damaged or not whole: " + text;
}

// Holds each of `files` to its record by `check`.
template <class Check>
void check_files(const fs::path& path,
                 std::span<const FileRecord> files,
                 const Check& check,
                 Verdict& verdict) {
  try {
    const Descriptor directory = open_directory(path);
    for (const FileRecord& record : files) {
      check(directory, record);
    }
  } catch (const Invalid& invalid) {
    verdict.reason = invalid.what();
    verdict.denied = invalid.denied();
  }
}

template <class Check>
Verdict check_checkpoint(const fs::path& directory, const Check& check) {
  Verdict verdict = verify_manifest(directory);
  if (verdict.manifest) {
    check_files(directory, verdict.manifest->files, check, verdict);
    if (!verdict.reason.empty()) {
      verdict.manifest.reset();
    }
  }
  return verdict;
}

// Of the file system of a folder or, before that exists, of its nearest ancestor.
struct FreeSpace {
  fs::path place;
  std::uint64_t bytes = 0;
};
FreeSpace free_space(const fs::path& folder) {
  FreeSpace space{.place = fs::absolute(folder)};
  while (!fs::exists(space.place) && space.place.has_parent_path() &&
         space.place != space.place.parent_path()) {
    space.place = space.place.parent_path();
  }
  std::error_code error;
  space.bytes = fs::space(space.place, error).available;
  if (error) {
    throw PreflightError(fmt::format("cannot tell the free space of {} ({}); check run.dir",
                                     space.place.string(),
                                     error.message()));
  }
  return space;
}

}  // namespace

std::string checkpoint_name(std::int64_t step) {
  return fmt::format("step-{:08}", step);
}

fs::path unfinished_directory(const fs::path& run_dir, std::int64_t step) {
  return run_dir / (checkpoint_name(step) + std::string(kUnfinishedSuffix));
}

Verdict verify_manifest(const fs::path& directory) {
  try {
    return {.manifest = read_committed_manifest(directory), .reason = {}};
  } catch (const Invalid& invalid) {
    return {.manifest = {}, .reason = invalid.what(), .denied = invalid.denied()};
  } catch (const CheckpointError& error) {
    return {.manifest = {}, .reason = error.what()};
  }
}

void verify_files(const fs::path& directory, std::span<const FileRecord> files, Verdict& verdict) {
  check_files(directory, files, check_file, verdict);
}

Verdict verify_sizes(const fs::path& directory) {
  return check_checkpoint(directory, open_sized);
}

Verdict verify_checkpoint(const fs::path& directory) {
  return check_checkpoint(directory, check_file);
}

namespace {

Scan look_for_newest(const fs::path& run_dir, const Verify& verify) {
  Scan scan;
  for (const StepEntry& entry : list_entries(run_dir)) {
    if (entry.unfinished) {
      scan.rejected.push_back({.path = entry.path,
                               .reason = "it was being written or deleted when its job ended",
                               .unfinished = true});
      continue;
    }
    if (entry.step < 0) {
      scan.rejected.push_back({entry.path, "it does not have the name of a checkpoint"});
      continue;
    }
    Verdict verdict = verify(entry.path);
    if (verdict.denied) {
      throw_denied(entry.path, verdict.reason);
    }
    if (verdict.manifest) {
      scan.newest = Found{entry.path, std::move(*verdict.manifest)};
      break;
    }
    scan.rejected.push_back({entry.path, std::move(verdict.reason)});
  }
  return scan;
}

}  // namespace

Scan find_newest_valid(const fs::path& run_dir, const Verify& verify) {
  // A run that is at it puts a checkpoint under its name and takes an older one away. Each look
  // takes as long as reading one back, in which a run seldom saves more than once.
  constexpr int kMostLooks = 3;
  for (int look = 1;; ++look) {
    Scan scan = look_for_newest(run_dir, verify);
    const std::size_t num_gone = std::erase_if(scan.rejected, [](const Rejected& one) {
      std::error_code error;
      return fs::symlink_status(one.path, error).type() == fs::file_type::not_found;
    });
    if (num_gone == 0 || scan.newest || look == kMostLooks) {
      return scan;
    }
  }
}

std::int64_t newest_step(const fs::path& run_dir) {
  for (const StepEntry& entry : list_entries(run_dir)) {
    if (!entry.unfinished) {
      return entry.step;
    }
  }
  return -1;
}

std::optional<Found> choose_checkpoint(const fs::path& run_dir,
                                       Resume resume,
                                       const Verify& verify) {
  if (resume == Resume::never) {
    for (const StepEntry& entry : list_entries(run_dir)) {
      if (!entry.unfinished) {
        throw ConfigError(
            fmt::format("run.resume is never and {} holds {} (saved work is not written over); set "
                        "run.resume to auto, choose another run.dir, or delete that one",
                        run_dir.string(),
                        entry.path.filename().string()));
      }
    }
    return {};
  }
  Scan scan = find_newest_valid(run_dir, verify);
  if (scan.newest) {
    for (const Rejected& one : scan.rejected) {
      log_warning("skipping {}: {}", one.path.string(), one.reason);
    }
    log_info("resuming from {} (step {}, {} samples seen)",
             scan.newest->path.string(),
             scan.newest->manifest.step,
             scan.newest->manifest.samples);
    return std::move(scan.newest);
  }
  const std::vector<StepEntry> entries = list_entries(run_dir);
  const bool never_saved = fs::exists(run_dir / kNothingSavedName) &&
                           std::none_of(entries.begin(), entries.end(), [](const StepEntry& entry) {
                             return has_marker(entry.path);
                           });
  if (resume == Resume::required) {
    throw CheckpointError(
        fmt::format("run.resume is required and {} has no valid checkpoint ({}); restore one, or "
                    "set run.resume to auto {} to start from scratch",
                    run_dir.string(),
                    never_saved ? "nothing was ever saved there" : list_reasons(scan.rejected),
                    never_saved ? "there" : "in an empty run.dir"));
  }
  if (never_saved) {
    log_warning(
        "{} has no checkpoint and never had one (its job ended before it saved the first); "
        "the run starts over from step 0",
        run_dir.string());
    return {};
  }
  if (!scan.rejected.empty() || has_metrics(run_dir)) {
    throw CheckpointError(fmt::format(
        "{} is of an earlier run and has no valid checkpoint ({}); restore one, choose another "
        "run.dir, or delete that one to start from scratch",
        run_dir.string(),
        list_reasons(scan.rejected)));
  }
  return {};
}

void note_nothing_saved(const fs::path& run_dir) {
  write_text_atomically(run_dir / kNothingSavedName,
                        "The run in this directory has not saved a checkpoint yet, so it may start "
                        "over. This file goes before the first one is committed.\n");
}

void remove_nothing_saved(const fs::path& run_dir) {
  const fs::path path = run_dir / kNothingSavedName;
  if (const int error_number = remove_file(path); error_number != 0) {
    if (error_number == ENOENT) {
      return;
    }
    throw CheckpointError(
        fmt::format("cannot remove {} ({}; it says that nothing was saved, which is not so any "
                    "more); remove it "
                    "by hand",
                    path.string(),
                    system_reason(error_number)));
  }
  sync_directory(run_dir);
}

namespace {

// Whether the first of `from_here`, newest first, is the first that counts from a multiple on.
bool stays_for_ever(std::span<const StepEntry> from_here,
                    const KeepRule& keep,
                    const Judge& judge) {
  const std::int64_t step = from_here.front().step;
  if (keep.every == 0 || step < keep.every) {
    return false;
  }
  const std::int64_t multiple = step / keep.every * keep.every;
  return std::none_of(from_here.begin() + 1, from_here.end(), [&](const StepEntry& older) {
    return !older.unfinished && older.step >= multiple && older.step < step &&
           has_marker(older.path) && judge(older.path) == Standing::counts;
  });
}

}  // namespace

void prune(const fs::path& run_dir,
           const KeepRule& keep,
           const Judge& judge,
           const Verify& verify) {
  require(keep.newest >= 1, "the newest checkpoint is always kept");
  std::int64_t num_counted = 0;
  bool newest = true;
  const std::vector<StepEntry> entries = list_entries(run_dir);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const StepEntry& entry = entries[i];
    if (entry.unfinished || entry.step < 0) {
      continue;
    }
    if (std::exchange(newest, false)) {
      const Verdict verdict = verify(entry.path);
      if (!verdict.manifest) {
        log_warning("{} is not valid: {}; keeping all older checkpoints",
                    entry.path.string(),
                    verdict.reason);
        return;
      }
      if (judge(entry.path) != Standing::counts) {
        return;
      }
      num_counted = 1;
      continue;
    }
    if (has_marker(entry.path)) {
      const Standing standing = judge(entry.path);
      if (standing == Standing::counts && num_counted < keep.newest) {
        ++num_counted;
        continue;
      }
      if (standing == Standing::counts &&
          stays_for_ever(std::span(entries).subspan(i), keep, judge)) {
        continue;
      }
      if (standing == Standing::foreign) {
        continue;
      }
    }
    remove_checkpoint(entry.path);
  }
}

std::vector<fs::path> committed_checkpoints(const fs::path& run_dir) {
  std::vector<fs::path> paths;
  for (const StepEntry& entry : list_entries(run_dir)) {
    if (!entry.unfinished && entry.step >= 0 && has_marker(entry.path)) {
      paths.push_back(entry.path);
    }
  }
  return paths;
}

void remove_unfinished(const fs::path& run_dir) {
  for (const StepEntry& entry : list_entries(run_dir)) {
    if (entry.unfinished && warn_unless_removed(entry.path)) {
      log_warning("removed {}, which a job left unfinished", entry.path.string());
    }
  }
}

std::uint64_t space_needed(std::uint64_t checkpoint_bytes) {
  return 2 * checkpoint_bytes + kSpaceMarginBytes;
}

void require_space(const fs::path& run_dir, std::uint64_t checkpoint_bytes) {
  const auto [place, have] = free_space(run_dir);
  const std::uint64_t need = space_needed(checkpoint_bytes);
  if (have < need) {
    throw PreflightError(fmt::format(
        "{} has {} bytes free and {} are needed (two checkpoints of {} bytes, because the "
        "old one is deleted only after the new one is verified, and {} for logs); free "
        "space or choose another run.dir",
        place.string(),
        have,
        need,
        checkpoint_bytes,
        kSpaceMarginBytes));
  }
}

void require_space_beside(const fs::path& run_dir,
                          std::uint64_t bytes,
                          std::uint64_t checkpoint_bytes) {
  const auto [place, have] = free_space(run_dir);
  const std::uint64_t need = bytes + checkpoint_bytes + kSpaceMarginBytes;
  if (have < need) {
    throw PreflightError(fmt::format(
        "{} has {} bytes free and {} are needed ({} for it, {} for the next checkpoint and {} for "
        "logs); free space, or export less often",
        place.string(),
        have,
        need,
        bytes,
        checkpoint_bytes,
        kSpaceMarginBytes));
  }
}

}  // namespace memphis
