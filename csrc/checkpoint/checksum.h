// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/core/file.h"

struct XXH3_state_s;

namespace memphis {

// XXH3, 64 bits, seed 0: it finds damage, it does not prove origin.
class Checksum {
 public:
  Checksum();
  void update(std::span<const std::byte> bytes);
  std::uint64_t value() const;
  // As it was made.
  void restart();

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

std::uint64_t checksum_of(std::string_view text);

// As files hold it: 16 lower-case digits.
std::string checksum_text(std::uint64_t checksum);

// Where a file is damaged is told by checksums of its blocks, which are equal but for the last one:
// so many bytes in each that there are kMaxBlocks at most, and whole pages. Of a checkpoint's largest
// files a block is a few MiB, and all that is known of a file's blocks a line of the manifest.
constexpr std::size_t kMaxBlocks = 64;
std::uint64_t block_bytes(std::uint64_t file_bytes);
// As many as a record lists: none where one would be all of the file.
std::size_t num_blocks(std::uint64_t file_bytes);

// The lower half of each block's checksum: they say where, and not whether.
class BlockChecksums {
 public:
  explicit BlockChecksums(std::uint64_t file_bytes);
  // The file's bytes, front to back, in pieces of any size.
  void update(std::span<const std::byte> bytes);
  // Once all have come.
  std::vector<std::uint32_t> finish();

 private:
  std::uint64_t block_bytes_;
  std::size_t num_blocks_;
  std::uint64_t in_block_ = 0;
  Checksum checksum_;
  std::vector<std::uint32_t> blocks_;
};

// What a file must be when it is read again.
struct FileRecord {
  std::string name;  // bare
  std::uint64_t bytes = 0;
  std::uint64_t xxh3 = 0;
  std::vector<std::uint32_t> blocks = {};  // num_blocks(bytes), or none: a version wrote it without

  bool operator==(const FileRecord&) const = default;
};

// "bytes 4096 to 8191": those of the record's blocks that are not as in `now`; empty where there are
// none, or the record has none.
std::string describe_damage(const FileRecord& record, std::span<const std::uint32_t> now);

// A record between ranks, without its name: so many words of 64 bits.
constexpr std::size_t kRecordWords = 2 + kMaxBlocks / 2;
void encode(const FileRecord& record, std::span<std::int64_t> words);
FileRecord decode_record(std::string name, std::span<const std::int64_t> words);

// A DurableWriter that knows the checksum of what passed through it: of the bytes in memory, so
// that reading the file back finds what the way to the disk and back did to them.
class ChecksumWriter {
 public:
  // The file will have so many bytes.
  ChecksumWriter(const std::filesystem::path& path, std::uint64_t file_bytes);
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Durable from here on. ContractError where it has another number of bytes.
  FileRecord close();

 private:
  std::string name_;
  std::uint64_t file_bytes_;
  DurableWriter writer_;
  Checksum checksum_;
  BlockChecksums blocks_;
};

}  // namespace memphis
