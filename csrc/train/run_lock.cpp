// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/run_lock.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/file.h>
#include <unistd.h>

#include "csrc/comm/activity.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

constexpr std::chrono::milliseconds kBetweenTries{100};

std::string own_machine() {
  return "on " + host_name();
}

// What the job that has the lock wrote of itself.
std::string read_owner(int descriptor) {
  std::array<char, 512> text{};
  const ssize_t length = ::pread(descriptor, text.data(), text.size(), 0);
  return length > 0 ? std::string(text.data(), static_cast<std::size_t>(length)) : "another job";
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& run_dir, const Patience& patience) {
  const std::filesystem::path path = run_dir / "lock";
  constexpr mode_t kMode = 0666;
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, kMode);
  if (descriptor_ < 0) {
    throw PreflightError(
        fmt::format("cannot open {} ({}); fix permissions or choose another run.dir",
                    path.string(),
                    system_reason(errno)));
  }
  const auto begin = std::chrono::steady_clock::now();
  bool waits = false;
  while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const int error_number = errno;
    if (error_number == EINTR) {
      continue;
    }
    if (error_number != EWOULDBLOCK) {
      spdlog::warn("cannot lock {} ({}); see to it that no other job uses this run.dir",
                   path.string(),
                   system_reason(error_number));
      return;
    }
    const std::string owner = read_owner(descriptor_);
    const bool here = owner.ends_with(own_machine());
    const std::chrono::milliseconds limit = here ? patience.here : patience.elsewhere;
    if (std::chrono::steady_clock::now() - begin > limit) {
      ::close(descriptor_);
      throw PreflightError(
          fmt::format("run.dir {} is in use by {} (two jobs would delete each other's files); wait "
                      "until that has ended, or choose another run.dir",
                      run_dir.string(),
                      owner));
    }
    if (!waits) {
      spdlog::warn("run.dir {} is in use by {}; waiting up to {:.0f} s for its end",
                   run_dir.string(),
                   owner,
                   std::chrono::duration<double>(limit).count());
      waits = true;
    }
    std::this_thread::sleep_for(kBetweenTries);
  }
  const std::string owner = fmt::format("process {} {}", ::getpid(), own_machine());
  if (::ftruncate(descriptor_, 0) != 0 ||
      ::pwrite(descriptor_, owner.data(), owner.size(), 0) < 0) {
    spdlog::warn("cannot write to {} ({}); a job that finds it locked will not know by whom",
                 path.string(),
                 system_reason(errno));
  }
}

RunLock::~RunLock() {
  ::close(descriptor_);
}

}  // namespace memphis
