// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace memphis {

// What the system says of a value of errno.
std::string system_reason(int error_number);

// A whole file, mapped read-only. Moves and does not copy. DataError, with the system's reason, if
// it cannot be opened, is not a regular file, or cannot be mapped. An empty file maps to an empty
// span.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// The whole file as text. DataError if it cannot be read.
std::string read_text(const std::filesystem::path& path);

// A new file, written front to back, durable once close() returns. Throws CheckpointError with the
// system's reason (a full disk, say) from any member; the destructor closes without a promise.
class DurableWriter {
 public:
  // The file must not exist yet.
  explicit DurableWriter(const std::filesystem::path& path);
  ~DurableWriter();
  DurableWriter(const DurableWriter&) = delete;
  DurableWriter& operator=(const DurableWriter&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Flushes to the device (fsync) and closes.
  void close();

  std::uint64_t bytes_written() const { return bytes_written_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t bytes_written_ = 0;
};

// Makes the entries of a directory durable: a rename or a new file is not, until this returns.
void sync_directory(const std::filesystem::path& directory);

// Writes `text` to a sibling, flushes it, renames it over `path` and flushes the directory: a
// reader sees the old file or the new one, whole, at any time.
void write_text_atomically(const std::filesystem::path& path, std::string_view text);

}  // namespace memphis
