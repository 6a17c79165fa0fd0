// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <xxhash.h>

#include "csrc/core/error.h"
#include "csrc/core/round.h"

namespace memphis {

void Checksum::Free::operator()(XXH3_state_s* state) const {
  XXH3_freeState(state);
}

Checksum::Checksum() : state_(XXH3_createState()) {
  if (!state_) {
    throw std::bad_alloc();
  }
  restart();
}

void Checksum::restart() {
  XXH3_64bits_reset(state_.get());
}

void Checksum::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
}

std::uint64_t Checksum::value() const {
  return XXH3_64bits_digest(state_.get());
}

std::uint64_t checksum_of(std::string_view text) {
  return XXH3_64bits(text.data(), text.size());
}

std::string checksum_text(std::uint64_t checksum) {
  return fmt::format("{:016x}", checksum);
}

std::uint64_t block_bytes(std::uint64_t file_bytes) {
  constexpr std::uint64_t kPage = 4096;
  return std::max(kPage, round_up((file_bytes + kMaxBlocks - 1) / kMaxBlocks, kPage));
}

std::size_t num_blocks(std::uint64_t file_bytes) {
  const std::uint64_t size = block_bytes(file_bytes);
  return file_bytes <= size ? 0 : static_cast<std::size_t>((file_bytes + size - 1) / size);
}

BlockChecksums::BlockChecksums(std::uint64_t file_bytes)
    : block_bytes_(block_bytes(file_bytes)), num_blocks_(num_blocks(file_bytes)) {}

void BlockChecksums::update(std::span<const std::byte> bytes) {
  while (num_blocks_ > 0 && !bytes.empty()) {
    const auto piece = bytes.first(
        static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), block_bytes_ - in_block_)));
    checksum_.update(piece);
    in_block_ += piece.size();
    bytes = bytes.subspan(piece.size());
    if (in_block_ == block_bytes_) {
      blocks_.push_back(static_cast<std::uint32_t>(checksum_.value()));
      checksum_.restart();
      in_block_ = 0;
    }
  }
}

std::vector<std::uint32_t> BlockChecksums::finish() {
  if (in_block_ > 0) {
    blocks_.push_back(static_cast<std::uint32_t>(checksum_.value()));
    in_block_ = 0;
  }
  return std::move(blocks_);
}

std::string describe_damage(const FileRecord& record, std::span<const std::uint32_t> now) {
  if (num_blocks(record.bytes) == 0 && record.bytes > 0) {
    return fmt::format("bytes 0 to {}", record.bytes - 1);
  }
  constexpr int kMostRanges = 4;
  const std::uint64_t size = block_bytes(record.bytes);
  const std::size_t count = std::min(record.blocks.size(), now.size());
  std::string text;
  int num_ranges = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (record.blocks[i] == now[i]) {
      continue;
    }
    const std::size_t begin = i;
    while (i + 1 < count && record.blocks[i + 1] != now[i + 1]) {
      ++i;
    }
    if (++num_ranges <= kMostRanges) {
      text += fmt::format("{}{} to {}",
                          text.empty() ? "bytes " : ", ",
                          begin * size,
                          std::min((i + 1) * size, record.bytes) - 1);
    }
  }
  return num_ranges > kMostRanges
             ? fmt::format("{} and {} more places", text, num_ranges - kMostRanges)
             : text;
}

void encode(const FileRecord& record, std::span<std::int64_t> words) {
  require(words.size() == kRecordWords && record.blocks.size() <= kMaxBlocks,
          "a record has its words");
  std::fill(words.begin(), words.end(), 0);
  words[0] = static_cast<std::int64_t>(record.bytes);
  words[1] = std::bit_cast<std::int64_t>(record.xxh3);
  if (!record.blocks.empty()) {  // which have no address
    std::memcpy(
        words.data() + 2, record.blocks.data(), record.blocks.size() * sizeof(std::uint32_t));
  }
}

FileRecord decode_record(std::string name, std::span<const std::int64_t> words) {
  FileRecord record{.name = std::move(name),
                    .bytes = static_cast<std::uint64_t>(words[0]),
                    .xxh3 = std::bit_cast<std::uint64_t>(words[1])};
  // Of a version that wrote none there are zeros alone.
  if (std::any_of(words.begin() + 2, words.end(), [](std::int64_t word) { return word != 0; })) {
    record.blocks.resize(num_blocks(record.bytes));
    std::memcpy(
        record.blocks.data(), words.data() + 2, record.blocks.size() * sizeof(std::uint32_t));
  }
  return record;
}

ChecksumWriter::ChecksumWriter(const std::filesystem::path& path, std::uint64_t file_bytes)
    : name_(path.filename().string()),
      file_bytes_(file_bytes),
      writer_(path),
      blocks_(file_bytes) {}

void ChecksumWriter::write(std::span<const std::byte> bytes) {
  checksum_.update(bytes);
  blocks_.update(bytes);
  writer_.write(bytes);
}

void ChecksumWriter::write(std::string_view text) {
  write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

FileRecord ChecksumWriter::close() {
  require(writer_.bytes_written() == file_bytes_, "a file has the bytes that were announced");
  writer_.close();
  return {
      .name = name_, .bytes = file_bytes_, .xxh3 = checksum_.value(), .blocks = blocks_.finish()};
}

}  // namespace memphis
