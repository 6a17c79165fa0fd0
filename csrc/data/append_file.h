// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "csrc/core/file_calls.h"

namespace memphis {

// A file that is written from some place on, by a job that goes on where it was stopped. What fails is
// a PreflightError that says what to do about it.
class AppendFile {
 public:
  // Made where there is none.
  explicit AppendFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }

  // False where another process has it, or had it and has given the file its last name since: then
  // what is locked is no longer what lies at the path.
  bool lock() const;

  std::uint64_t size() const;
  // To its first `size` bytes, behind which the next write goes.
  void cut(std::uint64_t size);
  void write(std::span<const std::byte> bytes);
  template <class T>
  void write_values(const std::vector<T>& values) {
    write(std::as_bytes(std::span(values)));
  }
  void sync() const;

 private:
  std::filesystem::path path_;
  Descriptor descriptor_;
};

// The same of names, and of the directories that they are in.
void make_directories_or_fail(const std::filesystem::path& directory);
void rename_or_fail(const std::filesystem::path& from, const std::filesystem::path& to);
void flush_names(const std::filesystem::path& directory);

}  // namespace memphis
