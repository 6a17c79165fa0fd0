// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/npy.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <string>
#include <string_view>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "'<f4' is little-endian");

// With version 1.0; the header's length follows in two bytes.
constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);
static_assert(kMagic.starts_with(kNpyMagic));
constexpr std::size_t kPreambleBytes = kMagic.size() + 2;
// Of the preamble and header together, so that the values can be mapped.
constexpr std::size_t kAlignment = 64;
// The dict up to the shape: NumPy writes keys in this order, and so do those who write for it.
constexpr std::string_view kBeforeShape = "{'descr': '<f4', 'fortran_order': False, 'shape': (";

std::string header_of(std::span<const std::int64_t> dims) {
  std::string dict(kBeforeShape);
  for (const std::int64_t dim : dims) {
    dict += std::to_string(dim) + ", ";
  }
  if (dims.size() == 1) {
    dict.pop_back();  // Python's tuple of one keeps its comma: "(5,)"
  } else if (!dims.empty()) {
    dict.resize(dict.size() - 2);
  }
  dict += "), }";
  const std::size_t used = kPreambleBytes + dict.size() + 1;
  dict.append((kAlignment - used % kAlignment) % kAlignment, ' ');
  dict += '\n';
  std::string header(kMagic);
  header += static_cast<char>(dict.size() & 0xFFU);
  header += static_cast<char>(dict.size() >> 8U);
  return header + dict;
}

std::uint64_t count_of(std::span<const std::int64_t> dims) {
  std::uint64_t count = 1;
  for (const std::int64_t dim : dims) {
    require(dim >= 0 && !__builtin_mul_overflow(count, static_cast<std::uint64_t>(dim), &count),
            "an array has a size");
  }
  return count;
}

[[noreturn]] void fail_npy(const fs::path& path, std::string_view problem) {
  throw DataError(fmt::format(
      "{}: {} (expected is a row-major float32 array, .npy version 1.0); write it with numpy.save",
      path.string(),
      problem));
}

}  // namespace

NpyWriter::NpyWriter(const fs::path& path, std::span<const std::int64_t> dims)
    : remaining_(count_of(dims)), writer_(path) {
  writer_.write(header_of(dims));
}

void NpyWriter::write(std::span<const float> values) {
  require(values.size() <= remaining_, "more values are written than the array has");
  remaining_ -= values.size();
  writer_.write(std::as_bytes(values));
}

void NpyWriter::close() {
  require(remaining_ == 0, "fewer values are written than the array has");
  writer_.close();
}

NpyArray read_npy(const fs::path& path) {
  const std::string bytes_of_file = read_text(path);
  const std::string_view bytes(bytes_of_file);
  if (bytes.size() < kPreambleBytes || !bytes.starts_with(kMagic)) {
    fail_npy(path, "it does not begin as one");
  }
  const auto byte_at = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const std::size_t length = byte_at(kMagic.size()) + 256U * byte_at(kMagic.size() + 1);
  if (length > bytes.size() - kPreambleBytes) {
    fail_npy(path, "its header is truncated");
  }
  std::string_view dict = bytes.substr(kPreambleBytes, length);
  if (!dict.starts_with(kBeforeShape)) {
    fail_npy(path, "its header is of another array type");
  }
  dict.remove_prefix(kBeforeShape.size());

  NpyArray array;
  std::uint64_t count = 1;
  while (!dict.empty() && dict.front() != ')') {
    std::int64_t dim = -1;
    const auto [end, error] = std::from_chars(dict.data(), dict.data() + dict.size(), dim);
    if (error != std::errc() || dim < 0 ||
        __builtin_mul_overflow(count, static_cast<std::uint64_t>(dim), &count)) {
      fail_npy(path, "its shape is not a list of sizes");
    }
    array.dims.push_back(dim);
    dict.remove_prefix(static_cast<std::size_t>(end - dict.data()));
    dict.remove_prefix(std::min(dict.find_first_not_of(", "), dict.size()));
  }
  const std::string_view values = bytes.substr(kPreambleBytes + length);
  // Divided, not multiplied: the count is the file's word.
  if (values.size() % sizeof(float) != 0 || values.size() / sizeof(float) != count) {
    fail_npy(path, fmt::format("it has {} bytes of values for {} values", values.size(), count));
  }
  array.values.resize(count);
  if (count > 0) {
    std::memcpy(array.values.data(), values.data(), values.size());
  }
  return array;
}

}  // namespace memphis
