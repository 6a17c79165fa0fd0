// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/file.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
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

[[noreturn]] void throw_write_error(const std::filesystem::path& path, int error_number) {
  throw CheckpointError("cannot write " + path.string() + " (" + system_reason(error_number) +
                        "); what was saved before is untouched, " +
                        std::string(write_advice(error_number)) + " and start again");
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw_read_error(path, system_reason(errno));
  }
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    throw_read_error(path, "it is not a regular file");
  }
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ > 0) {
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    const int error_number = errno;
    ::close(descriptor);
    if (address == MAP_FAILED) {
      throw_read_error(path, system_reason(error_number));
    }
    data_ = static_cast<const std::byte*>(address);
  } else {
    ::close(descriptor);
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

std::string read_text(const std::filesystem::path& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
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
  if (::fsync(descriptor_) != 0) {
    throw_write_error(path_, errno);
  }
  // A network file system may report a failed write only here.
  if (::close(std::exchange(descriptor_, -1)) != 0) {
    throw_write_error(path_, errno);
  }
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
