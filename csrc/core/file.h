// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/core/file_calls.h"

namespace memphis {

// What the system says of a value of errno.
std::string system_reason(int error_number);

// As many files as this process may hold open: what the system allows at most. The lower number
// that it allows at first is raised by the InputFile that meets it.
std::uint64_t open_file_limit();

// A regular file, open for reading. Its bytes are asked of the system at each read and not mapped:
// a file that is cut short under its reader, or a disk that fails, is an error with a name then,
// where a mapping would be a signal (SIGBUS). A file that is deleted or replaced meanwhile is read
// on as it was. Moves and does not copy. Any number of threads may read.
//
// DataError, with the system's reason, if it cannot be opened or is not a regular file.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }

  // When it was opened.
  std::uint64_t size() const { return size_; }
  std::int64_t modified_ns() const { return modified_ns_; }

  // All of `out`, from byte `offset` on. DataError, with the offset, if the file ends before, which
  // it did not when it was opened, or cannot be read. ContractError beyond size().
  void read(std::uint64_t offset, std::span<std::byte> out) const;

  // Its first `most` bytes, or all where there are fewer.
  std::vector<std::byte> beginning(std::uint64_t most) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  std::int64_t modified_ns_ = 0;  // since 1970
};

// The whole file as text: also one that has no size before it ends, a pipe. DataError if it cannot
// be read or has more than `max_bytes`.
std::string read_text(const std::filesystem::path& path,
                      std::uint64_t max_bytes = std::numeric_limits<std::uint64_t>::max());

// A new file, written front to back, durable once close() returns. Throws CheckpointError with the
// system's reason (a full disk, say) from any member; the destructor closes without a promise.
class DurableWriter {
 public:
  // The file must not exist yet.
  explicit DurableWriter(const std::filesystem::path& path);

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Flushes to the device (fsync) and closes.
  void close();

  std::uint64_t bytes_written() const { return bytes_written_; }

 private:
  std::filesystem::path path_;
  Descriptor descriptor_;
  std::uint64_t bytes_written_ = 0;
};

// A new file, or one that is there, written at any places by any number of threads, and of other
// processes, none of which write the same bytes. Throws CheckpointError with the system's reason
// from any member; the destructor closes without a promise.
class PlacedWriter {
 public:
  enum class Open : std::uint8_t {
    create,
    existing
  };  // of a name that must not, or must, be there
  PlacedWriter(const std::filesystem::path& path, Open open);

  // The file is as long as the last byte that was written.
  void write(std::uint64_t offset, std::span<const std::byte> bytes);
  // Flushes to the device (fsync) and closes.
  void close();

 private:
  std::filesystem::path path_;
  Descriptor descriptor_;
};

// Makes the entries of a directory durable: a rename or a new file is not, until this returns.
void sync_directory(const std::filesystem::path& directory);

// A file that takes the place of `path` at close(), written front to back into a sibling until
// then: a reader sees the old file or the new one, whole, at any time, and the destructor removes a
// sibling that was not closed. Where `path` is a symbolic link, that which it leads to is replaced
// and the link stays. A device or a pipe is written to as it stands: a rename would put a file in
// its place.
//
// CheckpointError, with the system's reason, from any member.
class ReplacingWriter {
 public:
  explicit ReplacingWriter(const std::filesystem::path& path);
  ~ReplacingWriter();
  ReplacingWriter(const ReplacingWriter&) = delete;
  ReplacingWriter& operator=(const ReplacingWriter&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // The file is durable, and its name too, once this returns.
  void close();

 private:
  const std::filesystem::path& written() const { return temporary_.empty() ? place_ : temporary_; }

  std::filesystem::path place_;      // behind links
  std::filesystem::path temporary_;  // empty where place_ is written to as it stands
  Descriptor descriptor_;
};

// The same of a whole text.
void write_text_atomically(const std::filesystem::path& path, std::string_view text);

// Removes the siblings of `path` that writers left whose process was killed, and returns them. None
// may be at work there.
std::vector<std::filesystem::path> remove_left_siblings(const std::filesystem::path& path);

}  // namespace memphis
