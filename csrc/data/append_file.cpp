// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/append_file.h"

#include <cerrno>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/write_advice.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(std::string_view what, const fs::path& path, int error) {
  throw PreflightError(fmt::format("cannot {} {} ({}); {}, and start again: what is done is kept",
                                   what,
                                   path.string(),
                                   system_reason(error),
                                   write_advice(error)));
}

}  // namespace

AppendFile::AppendFile(fs::path path)
    : path_(std::move(path)), descriptor_(open_path(path_, O_RDWR | O_CREAT, 0666)) {
  if (!descriptor_.is_open()) {
    fail("open", path_, errno);
  }
}

bool AppendFile::lock() const {
  struct stat here {};
  struct stat there {};
  return ::flock(descriptor_.number(), LOCK_EX | LOCK_NB) == 0 &&
         ::fstat(descriptor_.number(), &here) == 0 && ::stat(path_.c_str(), &there) == 0 &&
         here.st_dev == there.st_dev && here.st_ino == there.st_ino;
}

std::uint64_t AppendFile::size() const {
  const off_t end = ::lseek(descriptor_.number(), 0, SEEK_END);
  if (end < 0) {
    fail("read", path_, errno);
  }
  return static_cast<std::uint64_t>(end);
}

void AppendFile::cut(std::uint64_t size) {
  int error = cut_file(descriptor_.number(), size);
  if (error == 0 && ::lseek(descriptor_.number(), static_cast<off_t>(size), SEEK_SET) < 0) {
    error = errno;
  }
  if (error != 0) {
    fail("cut", path_, error);
  }
}

void AppendFile::write(std::span<const std::byte> bytes) {
  if (const int error = write_all(descriptor_.number(), bytes); error != 0) {
    fail("write", path_, error);
  }
}

void AppendFile::sync() const {
  if (const int error = flush_file(descriptor_.number()); error != 0) {
    fail("write", path_, error);
  }
}

void make_directories_or_fail(const fs::path& directory) {
  if (const int error = make_directories(directory); error != 0) {
    fail("open", directory, error);
  }
}

void rename_or_fail(const fs::path& from, const fs::path& to) {
  if (const int error = rename_path(from, to); error != 0) {
    fail("rename", from, error);
  }
}

void flush_names(const fs::path& directory) {
  if (const int error = flush_directory(directory); error != 0) {
    fail("write", directory, error);
  }
}

}  // namespace memphis
