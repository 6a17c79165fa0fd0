// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "csrc/core/file.h"

struct XXH3_state_s;

namespace memphis {

// XXH3, 64 bits, seed 0: it finds damage, it does not prove origin.
class Checksum {
 public:
  Checksum();
  void update(std::span<const std::byte> bytes);
  std::uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

std::uint64_t checksum_of(std::string_view text);

// As files hold it: 16 lower-case digits.
std::string checksum_text(std::uint64_t checksum);

// What a file must be when it is read again.
struct FileRecord {
  std::string name;  // bare
  std::uint64_t bytes = 0;
  std::uint64_t xxh3 = 0;

  bool operator==(const FileRecord&) const = default;
};

// A DurableWriter that knows the checksum of what passed through it: of the bytes in memory, so
// that reading the file back finds what the way to the disk and back did to them.
class ChecksumWriter {
 public:
  explicit ChecksumWriter(const std::filesystem::path& path);
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Durable from here on.
  FileRecord close();

 private:
  std::string name_;
  DurableWriter writer_;
  Checksum checksum_;
};

}  // namespace memphis
