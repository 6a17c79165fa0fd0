// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/file.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/core/write_advice.h"

namespace memphis {

std::string system_reason(int error_number) {
  return std::error_code(error_number, std::generic_category()).message();
}

std::string_view write_advice(int error_number) {
  switch (error_number) {
    case EFBIG:
      return "raise the limit on the size of files (`ulimit -f`) or use another file system";
    case ENOSPC:
    case EDQUOT:
      return "free space";
    case EACCES:
    case EPERM:
    case EROFS:
      return "fix permissions";
    default:
      return "free space or fix permissions";
  }
}

namespace {

[[noreturn]] void throw_read_error(const std::filesystem::path& path, const std::string& reason) {
  throw DataError("cannot read " + path.string() + " (" + reason +
                  "); check the path and its permissions");
}

int open_to_read(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe would wait for its writer.
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

// The soft limit, which is low for the sake of programs that use select(), becomes the hard one.
bool raise_open_file_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) {
    return false;
  }
  limit.rlim_cur = limit.rlim_max;
  return ::setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

[[noreturn]] void throw_write_error(const std::filesystem::path& path, int error_number) {
  throw CheckpointError("cannot write " + path.string() + " (" + system_reason(error_number) +
                        "); what was saved before is untouched, " +
                        std::string(write_advice(error_number)) + " and start again");
}

void close_durably(int& descriptor, const std::filesystem::path& path) {
  if (::fsync(descriptor) != 0) {
    throw_write_error(path, errno);
  }
  // A network file system may report a failed write only here.
  if (::close(std::exchange(descriptor, -1)) != 0) {
    throw_write_error(path, errno);
  }
}

}  // namespace

std::uint64_t open_file_limit() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_max : 0;
}

InputFile::InputFile(const std::filesystem::path& path) : path_(path) {
  descriptor_ = open_to_read(path);
  if (descriptor_ < 0 && errno == EMFILE && raise_open_file_limit()) {
    descriptor_ = open_to_read(path);
  }
  if (descriptor_ < 0 && errno == EMFILE) {
    throw DataError("cannot read " + path.string() + " (" + system_reason(errno) +
                    ", the limit is " + std::to_string(open_file_limit()) +
                    "); raise it with `ulimit -Hn` and -Sn");
  }
  if (descriptor_ < 0) {
    throw_read_error(path, system_reason(errno));
  }
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw_read_error(path, "it is not a regular file");
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
  constexpr std::int64_t kSecond = 1'000'000'000;
  modified_ns_ = status.st_mtim.tv_sec * kSecond + status.st_mtim.tv_nsec;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_),
      modified_ns_(other.modified_ns_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  // What this one held goes with the other.
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  std::swap(modified_ns_, other.modified_ns_);
  return *this;
}

void InputFile::read(std::uint64_t offset, std::span<std::byte> out) const {
  require(offset <= size_ && out.size() <= size_ - offset, "bytes are read from within a file");
  while (!out.empty()) {
    const ssize_t count = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      throw DataError("cannot read " + path_.string() + " from byte " + std::to_string(offset) +
                      " on (" + system_reason(errno) +
                      "); check the file and the disk that it lies on, and start again");
    }
    if (count == 0) {
      struct stat status {};
      const bool known = ::fstat(descriptor_, &status) == 0;
      throw DataError(path_.string() + " has no byte " + std::to_string(offset) +
                      " any more (it had " + std::to_string(size_) +
                      " bytes when it was opened, was cut short meanwhile" +
                      (known ? " and has " + std::to_string(status.st_size) : "") +
                      "); restore it, leave it as it is while it is in use, and start again");
    }
    offset += static_cast<std::uint64_t>(count);
    out = out.subspan(static_cast<std::size_t>(count));
  }
}

std::vector<std::byte> InputFile::beginning(std::uint64_t most) const {
  std::vector<std::byte> bytes(static_cast<std::size_t>(std::min(most, size_)));
  read(0, bytes);
  return bytes;
}

std::string read_text(const std::filesystem::path& path, std::uint64_t max_bytes) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw_read_error(path, system_reason(errno));
  }
  std::string text;
  std::vector<char> piece(std::size_t{1} << 16U);
  int error_number = 0;
  while (text.size() <= max_bytes) {
    const ssize_t count = ::read(descriptor, piece.data(), piece.size());
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      error_number = count < 0 ? errno : 0;
      break;
    }
    text.append(piece.data(), static_cast<std::size_t>(count));
  }
  ::close(descriptor);
  if (error_number == EISDIR) {
    throw DataError("cannot read " + path.string() +
                    " (it is a directory); name a file that lies in it");
  }
  if (error_number != 0) {
    throw_read_error(path, system_reason(error_number));
  }
  if (text.size() > max_bytes) {
    throw DataError("cannot read " + path.string() + " (it has more than " +
                    std::to_string(max_bytes) + " bytes); check that this is the right file");
  }
  return text;
}

DurableWriter::DurableWriter(const std::filesystem::path& path) : path_(path) {
  constexpr mode_t kMode = 0640;  // checkpoints are not for everybody on a shared cluster
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kMode);
  if (descriptor_ < 0) {
    throw_write_error(path_, errno);
  }
}

DurableWriter::~DurableWriter() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
}

void DurableWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      throw_write_error(path_, errno);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(count));
    bytes_written_ += static_cast<std::uint64_t>(count);
  }
}

void DurableWriter::write(std::string_view text) {
  write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

void DurableWriter::close() {
  close_durably(descriptor_, path_);
}

PlacedWriter::PlacedWriter(const std::filesystem::path& path, Open open) : path_(path) {
  constexpr mode_t kMode = 0640;  // as a DurableWriter's
  const int created = open == Open::create ? O_CREAT | O_EXCL : 0;
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC | created, kMode);
  if (descriptor_ < 0) {
    throw_write_error(path_, errno);
  }
}

PlacedWriter::~PlacedWriter() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
  }
}

void PlacedWriter::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count =
        ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      throw_write_error(path_, errno);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
}

void PlacedWriter::close() {
  close_durably(descriptor_, path_);
}

void sync_directory(const std::filesystem::path& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    throw_write_error(directory, errno);
  }
  const int status = ::fsync(descriptor);
  const int error_number = errno;
  ::close(descriptor);
  // Some file systems do not sync directories and say so; that is their promise, not a failure.
  if (status != 0 && error_number != EINVAL) {
    throw_write_error(directory, error_number);
  }
}

void write_text_atomically(const std::filesystem::path& path, std::string_view text) {
  std::filesystem::path temporary = path;
  temporary += ".tmp-" + std::to_string(::getpid());
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);  // of an earlier process with our id
  {
    DurableWriter writer(temporary);
    writer.write(text);
    writer.close();
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    throw_write_error(path, errno);
  }
  const std::filesystem::path parent = path.parent_path();
  sync_directory(parent.empty() ? std::filesystem::path(".") : parent);
}

}  // namespace memphis
