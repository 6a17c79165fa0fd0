// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>

#include <sys/types.h>

namespace memphis {

// The one place where the program changes files and directories: all that it writes, names, cuts,
// flushes and removes goes through these calls, so that whoever makes each of them fail has seen
// every way in which a disk can let it down. They say what the system says, 0 or a value of errno,
// and leave the message to those who know what was to be written.

// An open file or directory; closed when it goes. Moves and does not copy.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() { close(); }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);  // what this one held goes with the other
    return *this;
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  bool is_open() const { return number_ >= 0; }
  int number() const { return number_; }

  // What a network file system failed to write it may report only here. Closed in any case.
  [[nodiscard]] int close_checked();

 private:
  void close() noexcept;

  int number_ = -1;
};

// open(2), with O_CLOEXEC. Not open, and errno is set, where it fails.
Descriptor open_path(const std::filesystem::path& path, int flags, mode_t mode = 0);

// All of it, however few bytes the system takes at a time, and after signals.
[[nodiscard]] int write_all(int descriptor, std::span<const std::byte> bytes);
[[nodiscard]] int write_all(int descriptor, std::string_view text);
[[nodiscard]] int write_all_at(int descriptor,
                               std::span<const std::byte> bytes,
                               std::uint64_t offset);

// ftruncate(2), and fsync(2).
[[nodiscard]] int cut_file(int descriptor, std::uint64_t bytes);
[[nodiscard]] int flush_file(int descriptor);

// Makes the entries of a directory durable. A file system that does not sync directories, and says
// so, has done what it can: 0.
[[nodiscard]] int flush_directory(const std::filesystem::path& directory);

// The directory that a path's last name is an entry of.
std::filesystem::path directory_of(const std::filesystem::path& path);

[[nodiscard]] int rename_path(const std::filesystem::path& from, const std::filesystem::path& to);

// ENOENT where there is none.
int remove_file(const std::filesystem::path& path);

// ENOTEMPTY where something is in it.
int remove_directory(const std::filesystem::path& path);

// With all that is below; 0 where there is nothing.
int remove_tree(const std::filesystem::path& path);

[[nodiscard]] int make_directory(const std::filesystem::path& path, mode_t mode);

// All that are missing of a path, each durable in the one above it where this process may read that
// one.
int make_directories(const std::filesystem::path& path);

}  // namespace memphis
