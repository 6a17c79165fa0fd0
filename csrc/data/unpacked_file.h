// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "csrc/core/file.h"

namespace memphis {

enum class Packing : std::uint8_t { none, gzip, zstd };

// A file's bytes in order, as they were before it was packed.
//
// DataError, with the file, where it cannot be read or has changed, and with the byte where what is
// packed is damaged or breaks off.
class UnpackedFile {
 public:
  explicit UnpackedFile(const std::filesystem::path& path) : file_(path) {}
  virtual ~UnpackedFile() = default;
  UnpackedFile(const UnpackedFile&) = delete;
  UnpackedFile& operator=(const UnpackedFile&) = delete;

  // As many unpacked bytes as there are and `out` has room for, at least one unless it is the end.
  virtual std::size_t read(std::span<std::byte> out) = 0;
  // Leaves out so many, all of which must be there.
  virtual void skip(std::uint64_t count);

  const InputFile& file() const { return file_; }
  std::uint64_t place() const { return place_; }  // in the file, behind what was read of it

  // Of the file as it was opened, which a copy that is still growing is not.
  void require_unchanged() const;

 protected:
  // The next bytes of the file, as they lie there: fewer than `out` has room for at its end alone.
  std::span<std::byte> raw(std::span<std::byte> out);
  void move(std::uint64_t count);

 private:
  InputFile file_;
  std::uint64_t place_ = 0;
};

std::unique_ptr<UnpackedFile> open_unpacked(const std::filesystem::path& path, Packing packing);

}  // namespace memphis
