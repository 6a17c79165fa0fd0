// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

#include "csrc/core/file.h"

// NumPy's array format, version 1.0, for float32 in row-major order. Source: numpy/lib/format.py.
namespace memphis {

// How an array begins, of any version.
constexpr std::string_view kNpyMagic = "\x93NUMPY";

// Writes one array front to back, as a ReplacingWriter does: a reader sees the whole array or what
// was there before, unless `path` is a device or a pipe. The destructor removes an array that was
// not closed.
class NpyWriter {
 public:
  // CheckpointError, here and below, if it cannot be written.
  NpyWriter(const std::filesystem::path& path, std::span<const std::int64_t> dims);

  void write(std::span<const float> values);
  // ContractError unless as many values were written as the dims say.
  void close();

 private:
  std::uint64_t remaining_;  // values
  ReplacingWriter writer_;
};

struct NpyArray {
  std::vector<std::int64_t> dims;
  std::vector<float> values;
};

// DataError unless it is such an array, whole.
NpyArray read_npy(const std::filesystem::path& path);

}  // namespace memphis
