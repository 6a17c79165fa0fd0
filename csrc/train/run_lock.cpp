// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/run_lock.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "csrc/comm/activity.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/train/run_directory.h"

namespace memphis {
namespace {

constexpr std::chrono::milliseconds kBetweenTries{100};
constexpr int kToLook = O_RDONLY | O_NONBLOCK;  // a pipe of that name would wait for its writer

std::string own_machine() {
  return "on " + host_name();
}

// What the job that has the lock wrote of itself.
std::string read_owner(int descriptor) {
  std::array<char, 512> text{};
  const ssize_t length = ::pread(descriptor, text.data(), text.size(), 0);
  return length > 0 ? std::string(text.data(), static_cast<std::size_t>(length)) : "another job";
}

std::filesystem::path lock_path(const std::filesystem::path& run_dir) {
  return run_dir / kLockName;
}

// Takes the lock once no other job has it. False, with a warning, where there are no locks.
bool await_lock(int descriptor,
                int operation,
                const std::filesystem::path& run_dir,
                const RunLock::Patience& patience) {
  const auto begin = std::chrono::steady_clock::now();
  for (int num_refused = 0; ::flock(descriptor, operation | LOCK_NB) != 0;) {
    const int error_number = errno;
    if (error_number == EINTR) {
      continue;
    }
    if (error_number != EWOULDBLOCK) {
      log_warning("cannot lock {} ({}); see to it that no other job uses this run.dir",
                  lock_path(run_dir).string(),
                  system_reason(error_number));
      return false;
    }
    const std::string owner = read_owner(descriptor);
    const bool here = owner.ends_with(own_machine());
    const std::chrono::milliseconds limit = here ? patience.here : patience.elsewhere;
    if (std::chrono::steady_clock::now() - begin > limit) {
      throw PreflightError(
          fmt::format("run.dir {} is in use by {} (two jobs would delete each other's files); wait "
                      "until that has ended, or choose another run.dir",
                      run_dir.string(),
                      owner));
    }
    // The first time it may be no more than a look by another job.
    if (num_refused++ == 1) {
      log_warning("run.dir {} is in use by {}; waiting up to {:.0f} s for its end",
                  run_dir.string(),
                  owner,
                  std::chrono::duration<double>(limit).count());
    }
    std::this_thread::sleep_for(kBetweenTries);
  }
  return true;
}

// Where the file that a descriptor has open is, beside its path.
enum class LockFile : std::uint8_t { there, gone, replaced };

// By device and inode, which any file system keeps for a file that is open, and its times and
// length not. A server that does not answer has not said that the file is gone: the next write will
// be told.
LockFile lock_file_at(int descriptor, const std::filesystem::path& path) {
  struct stat locked {};
  struct stat now {};
  if (::stat(path.c_str(), &now) != 0) {
    return errno == ENOENT || errno == ENOTDIR ? LockFile::gone : LockFile::there;
  }
  if (::fstat(descriptor, &locked) != 0 ||
      (locked.st_dev == now.st_dev && locked.st_ino == now.st_ino)) {
    return LockFile::there;
  }
  return LockFile::replaced;
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& run_dir, const Patience& patience)
    : run_dir_(run_dir) {
  const std::filesystem::path path = lock_path(run_dir);
  constexpr mode_t kMode = 0666;
  // Again where the file was deleted while this job waited for its lock: who opens the path finds
  // another.
  do {
    descriptor_ = open_path(path, O_RDWR | O_CREAT, kMode);
    if (!descriptor_.is_open()) {
      throw PreflightError(
          fmt::format("cannot open {} ({}); fix permissions or choose another run.dir",
                      path.string(),
                      system_reason(errno)));
    }
    if (!await_lock(descriptor_.number(), LOCK_EX, run_dir, patience)) {
      return;
    }
  } while (lock_file_at(descriptor_.number(), path) != LockFile::there);
  const std::string owner = fmt::format("process {} {}", ::getpid(), own_machine());
  int error = cut_file(descriptor_.number(), 0);
  if (error == 0) {
    error = write_all(descriptor_.number(), owner);
  }
  if (error != 0) {
    log_warning("cannot write to {} ({}); a job that finds it locked will not know by whom",
                path.string(),
                system_reason(error));
  }
}

void RunLock::require_held() const {
  const LockFile lock_file = lock_file_at(descriptor_.number(), lock_path(run_dir_));
  if (lock_file == LockFile::there) {
    return;
  }
  throw PreflightError(fmt::format(
      "run.dir {} is not the directory that this job has locked: {} {} (it was deleted{} while the "
      "job "
      "ran, which writes nothing more, as another job may use that path now); put the directory "
      "back, "
      "or start again from a checkpoint that is left, and do not move a run.dir whose job runs",
      run_dir_.string(),
      lock_path(run_dir_).string(),
      lock_file == LockFile::gone ? "is gone" : "is another file",
      lock_file == LockFile::gone ? " or moved" : ", moved or replaced"));
}

void RunLock::await_free(const std::filesystem::path& run_dir, const Patience& patience) {
  const Descriptor file = open_path(lock_path(run_dir), kToLook);
  if (file.is_open()) {
    await_lock(file.number(), LOCK_SH, run_dir, patience);
  }
}

std::optional<std::string> RunLock::owner(const std::filesystem::path& run_dir) {
  const Descriptor file = open_path(lock_path(run_dir), kToLook);
  if (!file.is_open() || ::flock(file.number(), LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
    return std::nullopt;
  }
  return read_owner(file.number());
}

}  // namespace memphis
