// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/file_calls.h"

#include <cerrno>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace memphis {
namespace {

// Writes all by calls of write(bytes), each of which takes some.
template <class Write>
int write_in_pieces(std::span<const std::byte> bytes, const Write& write) {
  while (!bytes.empty()) {
    const ssize_t count = write(bytes);
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      return errno;
    }
    if (count == 0) {
      return EIO;  // of some device that takes nothing more and has no reason
    }
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return 0;
}

int result(int status) {
  return status == 0 ? 0 : errno;
}

}  // namespace

int Descriptor::close_checked() {
  // Never again after EINTR: on Linux the number is free by then, and may be another file's.
  const int error = result(::close(std::exchange(number_, -1)));
  return error == EINTR ? 0 : error;
}

void Descriptor::close() noexcept {
  if (number_ >= 0) {
    const int error = errno;  // of what led here, which the caller may yet want to read
    ::close(std::exchange(number_, -1));
    errno = error;
  }
}

Descriptor open_path(const std::filesystem::path& path, int flags, mode_t mode) {
  return Descriptor(::open(path.c_str(), flags | O_CLOEXEC, mode));
}

int write_all(int descriptor, std::span<const std::byte> bytes) {
  return write_in_pieces(bytes, [&](std::span<const std::byte> left) {
    return ::write(descriptor, left.data(), left.size());
  });
}

int write_all(int descriptor, std::string_view text) {
  return write_all(descriptor, std::as_bytes(std::span<const char>(text.data(), text.size())));
}

int write_all_at(int descriptor, std::span<const std::byte> bytes, std::uint64_t offset) {
  return write_in_pieces(bytes, [&](std::span<const std::byte> left) {
    const std::uint64_t done = bytes.size() - left.size();
    return ::pwrite(descriptor, left.data(), left.size(), static_cast<off_t>(offset + done));
  });
}

int cut_file(int descriptor, std::uint64_t bytes) {
  return result(::ftruncate(descriptor, static_cast<off_t>(bytes)));
}

int flush_file(int descriptor) {
  return result(::fsync(descriptor));
}

int flush_directory(const std::filesystem::path& directory) {
  const Descriptor opened = open_path(directory, O_RDONLY | O_DIRECTORY);
  if (!opened.is_open()) {
    return errno;
  }
  const int error = flush_file(opened.number());
  return error == EINVAL ? 0 : error;
}

std::filesystem::path directory_of(const std::filesystem::path& path) {
  const std::filesystem::path parent = path.parent_path();
  return parent.empty() ? std::filesystem::path(".") : parent;
}

int rename_path(const std::filesystem::path& from, const std::filesystem::path& to) {
  return result(::rename(from.c_str(), to.c_str()));
}

int remove_file(const std::filesystem::path& path) {
  return result(::unlink(path.c_str()));
}

int remove_directory(const std::filesystem::path& path) {
  return result(::rmdir(path.c_str()));
}

int remove_tree(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  return error.value();
}

int make_directory(const std::filesystem::path& path, mode_t mode) {
  return result(::mkdir(path.c_str(), mode));
}

int make_directories(const std::filesystem::path& path) {
  std::error_code status;
  if (path.empty() || std::filesystem::is_directory(path, status)) {
    return 0;
  }
  if (!path.has_filename()) {  // "run/" is "run"
    return make_directories(path.parent_path());
  }
  const std::filesystem::path above = directory_of(path);
  if (const int error = make_directories(above); error != 0) {
    return error;
  }
  constexpr mode_t kMode = 0777;  // less the umask
  if (const int error = make_directory(path, kMode); error != 0) {
    // Another process may have been first.
    if (std::filesystem::is_directory(path, status)) {
      return 0;
    }
    return error == EEXIST ? ENOTDIR : error;
  }
  const int error = flush_directory(above);
  return error == EACCES || error == EPERM ? 0 : error;
}

}  // namespace memphis
