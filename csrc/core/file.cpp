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

void close_durably(Descriptor& descriptor, const std::filesystem::path& path) {
  if (const int error = flush_file(descriptor.number()); error != 0) {
    throw_write_error(path, error);
  }
  if (const int error = descriptor.close_checked(); error != 0) {
    throw_write_error(path, error);
  }
}

Descriptor open_to_write(const std::filesystem::path& path, int flags) {
  constexpr mode_t kMode = 0640;  // checkpoints are not for everybody on a shared cluster
  Descriptor descriptor = open_path(path, O_WRONLY | flags, kMode);
  if (!descriptor.is_open()) {
    throw_write_error(path, errno);
  }
  return descriptor;
}

// Where symbolic links lead from `path`, also to what is not there yet.
std::filesystem::path end_of_links(std::filesystem::path path) {
  constexpr int kMostLinks = 40;  // as the system's own limit
  std::error_code error;
  for (int i = 0; std::filesystem::is_symlink(path, error); ++i) {
    if (i == kMostLinks) {
      throw_write_error(path, ELOOP);
    }
    const std::filesystem::path next = std::filesystem::read_symlink(path, error);
    if (error) {
      throw_write_error(path, error.value());
    }
    path = path.parent_path() / next;  // which is `next` where that is absolute
  }
  return path;
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

DurableWriter::DurableWriter(const std::filesystem::path& path)
    : path_(path), descriptor_(open_to_write(path, O_CREAT | O_EXCL)) {}

void DurableWriter::write(std::span<const std::byte> bytes) {
  if (const int error = write_all(descriptor_.number(), bytes); error != 0) {
    throw_write_error(path_, error);
  }
  bytes_written_ += bytes.size();
}

void DurableWriter::write(std::string_view text) {
  write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

void DurableWriter::close() {
  close_durably(descriptor_, path_);
}

PlacedWriter::PlacedWriter(const std::filesystem::path& path, Open open)
    : path_(path), descriptor_(open_to_write(path, open == Open::create ? O_CREAT | O_EXCL : 0)) {}

void PlacedWriter::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  if (const int error = write_all_at(descriptor_.number(), bytes, offset); error != 0) {
    throw_write_error(path_, error);
  }
}

void PlacedWriter::close() {
  close_durably(descriptor_, path_);
}

void sync_directory(const std::filesystem::path& directory) {
  if (const int error = flush_directory(directory); error != 0) {
    throw_write_error(directory, error);
  }
}

namespace {

constexpr std::string_view kSiblingSuffix = ".tmp-";  // and the id of its process

}  // namespace

ReplacingWriter::ReplacingWriter(const std::filesystem::path& path) : place_(path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&
      !std::filesystem::is_directory(status)) {
    // By the name as given: what /dev/stdout leads to may be a pipe, which has none of its own.
    descriptor_ = open_to_write(path, 0);
    return;
  }
  place_ = end_of_links(path);
  temporary_ = place_;
  temporary_ += std::string(kSiblingSuffix) + std::to_string(::getpid());
  remove_file(temporary_);  // of an earlier process with our id
  descriptor_ = open_to_write(temporary_, O_CREAT | O_EXCL);
}

ReplacingWriter::~ReplacingWriter() {
  if (!temporary_.empty()) {
    remove_file(temporary_);
  }
}

void ReplacingWriter::write(std::span<const std::byte> bytes) {
  if (const int error = write_all(descriptor_.number(), bytes); error != 0) {
    throw_write_error(written(), error);
  }
}

void ReplacingWriter::write(std::string_view text) {
  write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

void ReplacingWriter::close() {
  if (temporary_.empty()) {  // what is no file need not know of flushing
    if (const int error = descriptor_.close_checked(); error != 0) {
      throw_write_error(place_, error);
    }
    return;
  }
  close_durably(descriptor_, temporary_);
  if (const int error = rename_path(temporary_, place_); error != 0) {
    throw_write_error(place_, error);
  }
  temporary_.clear();
  sync_directory(directory_of(place_));
}

std::vector<std::filesystem::path> remove_left_siblings(const std::filesystem::path& path) {
  const std::filesystem::path place = end_of_links(path);
  const std::string beginning = place.filename().string() + std::string(kSiblingSuffix);
  std::vector<std::filesystem::path> removed;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory_of(place), error), end;
       !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(beginning) && name.size() > beginning.size() &&
        name.find_first_not_of("0123456789", beginning.size()) == std::string::npos &&
        remove_file(entry->path()) == 0) {
      removed.push_back(entry->path());
    }
  }
  return removed;
}

void write_text_atomically(const std::filesystem::path& path, std::string_view text) {
  ReplacingWriter writer(path);
  writer.write(text);
  writer.close();
}

}  // namespace memphis
