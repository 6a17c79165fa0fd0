// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "csrc/core/file.h"

// Numbers in files of tokens, and what the readers of such files share.
namespace memphis {

// Numbers in a file, one after another.
struct IdColumn {
  enum class Type : std::uint8_t { u8, i8, i16, i32, i64, f64, f32, u16, u32 };

  InputFile file;
  std::uint64_t offset = 0;  // of the first, in bytes
  std::uint64_t count = 0;
  Type type = Type::i32;

  std::uint64_t item_bytes() const;
  // Ids [begin, begin + out.size()). DataError for one that is outside [0, vocab_size).
  void read(std::uint64_t begin, std::span<std::int32_t> out, std::int64_t vocab_size) const;
};

// Of a scan: a multiple of every type's size.
constexpr std::uint64_t kScanBytes = std::uint64_t{4} << 20U;

// Every id of a column is read once, for the largest and for a digest. Chunks are digested apart,
// so that threads and ranks share them out.
struct ScannedChunk {
  std::int64_t largest_id = -1;
  std::string digest;
};
std::uint64_t num_chunks(const IdColumn& ids);
// DataError, with the byte, for an id that is outside [0, vocab_size).
ScannedChunk scan_chunk(const IdColumn& ids, std::uint64_t chunk, std::int64_t vocab_size);
// What it is called in a FileRecords.
std::string scan_name(const IdColumn& ids);
[[noreturn]] void refuse_tokens(const std::filesystem::path& path,
                                const std::string& why,
                                const std::string& fix);
constexpr std::string_view kCopyAgain = "copy or write it again, whole";

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

template <class T>
T read_one(const InputFile& file, std::uint64_t offset) {
  std::array<std::byte, sizeof(T)> bytes;
  file.read(offset, bytes);
  return load<T>(bytes.data());
}

// Positions from `first` on.
void count_up(std::span<std::int32_t> position, std::uint64_t first);

}  // namespace memphis
