// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/checksum.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/test_tensor.h"

namespace memphis {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string random_text(std::mt19937_64& random, std::size_t size) {
  std::string text(size, '\0');
  std::generate(text.begin(), text.end(), [&] { return static_cast<char>(random()); });
  return text;
}

std::vector<std::uint32_t> blocks_of(const std::string& text) {
  BlockChecksums blocks(text.size());
  blocks.update(bytes_of(text));
  return blocks.finish();
}

TEST(Checksum, BlocksAreFewAndHaveAllOfTheFile) {
  EXPECT_EQ(num_blocks(0), 0U);
  EXPECT_EQ(num_blocks(4096), 0U) << "the file's own checksum says as much";
  EXPECT_EQ(num_blocks(4097), 2U);
  for (const std::uint64_t bytes : {std::uint64_t{64 * 4096},
                                    std::uint64_t{64 * 4096 + 1},
                                    std::uint64_t{9'876'543'210},
                                    std::uint64_t{INT64_MAX}}) {
    EXPECT_LE(num_blocks(bytes), kMaxBlocks) << bytes;
    EXPECT_GT(num_blocks(bytes), kMaxBlocks / 2) << bytes;
    EXPECT_EQ(block_bytes(bytes) % 4096, 0U) << bytes;
    EXPECT_GE(num_blocks(bytes) * block_bytes(bytes), bytes);
    EXPECT_LT((num_blocks(bytes) - 1) * block_bytes(bytes), bytes);
  }
}

TEST(Checksum, BlocksDoNotDependOnHowTheBytesCome) {
  std::mt19937_64 random(test::test_seed());
  for (const std::size_t size : {4097U, 300'000U, 524'288U}) {
    const std::string text = random_text(random, size);
    const std::vector<std::uint32_t> expected = blocks_of(text);
    ASSERT_EQ(expected.size(), num_blocks(size));
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const std::uint64_t begin = i * block_bytes(size);
      EXPECT_EQ(expected[i],
                static_cast<std::uint32_t>(
                    checksum_of(std::string_view(text).substr(begin, block_bytes(size)))));
    }
    BlockChecksums blocks(size);
    for (std::size_t at = 0; at < size;) {
      const std::size_t count = std::min<std::size_t>(1 + random() % 20'000, size - at);
      blocks.update(bytes_of(text).subspan(at, count));
      at += count;
    }
    EXPECT_EQ(blocks.finish(), expected);
  }
}

TEST(Checksum, DamageIsInTheBytesThatAreNamed) {
  EXPECT_EQ(describe_damage({"x", 12'289, 0, {1, 2, 3, 4}}, std::array{1U, 2U, 3U, 4U}), "");
  EXPECT_EQ(describe_damage({"x", 12'289, 0, {1, 2, 3, 4}}, std::array{1U, 0U, 3U, 0U}),
            "bytes 4096 to 8191, 12288 to 12288");
  EXPECT_EQ(describe_damage({"x", 12'289, 0, {1, 2, 3, 4}}, std::array{1U, 0U, 0U, 0U}),
            "bytes 4096 to 12288");
  EXPECT_EQ(describe_damage({"x", 12'289, 0}, std::array{1U, 0U, 3U, 0U}), "")
      << "of a version that wrote none";
  EXPECT_EQ(describe_damage({"x", 827, 0}, {}), "bytes 0 to 826");
  EXPECT_EQ(describe_damage({"x", 0, 0}, {}), "");
  std::vector<std::uint32_t> now(12, 7);
  FileRecord record{"x", 12 * 4096, 0, now};
  for (std::size_t i = 0; i < now.size(); i += 2) {
    now[i] = 8;
  }
  EXPECT_EQ(describe_damage(record, now),
            "bytes 0 to 4095, 8192 to 12287, 16384 to 20479, 24576 to 28671 and 2 more places");
}

TEST(Checksum, RecordsTravel) {
  std::mt19937_64 random(test::test_seed());
  for (const std::size_t size : {0U, 827U, 4097U, 12'289U, 600'000U}) {
    FileRecord record{.name = "x", .bytes = size, .xxh3 = random()};
    std::array<std::int64_t, kRecordWords> words{};
    words.fill(-1);  // what lay there before
    encode(record, words);
    EXPECT_EQ(decode_record("x", words), record) << "of a version that wrote no blocks";
    record.blocks = blocks_of(random_text(random, size));
    encode(record, words);
    EXPECT_EQ(decode_record("x", words), record);
  }
}

TEST(Checksum, AWriterKnowsWhatPassedThroughIt) {
  const test::TemporaryDirectory directory;
  std::mt19937_64 random(test::test_seed());
  const std::string text = random_text(random, 100'000);
  ChecksumWriter writer(directory.path() / "x", text.size());
  writer.write(std::string_view(text).substr(0, 5000));
  writer.write(std::string_view(text).substr(5000));
  const FileRecord record = writer.close();
  EXPECT_EQ(record, (FileRecord{"x", text.size(), checksum_of(text), blocks_of(text)}));
  EXPECT_EQ(read_text(directory.path() / "x"), text);

  ChecksumWriter shorter(directory.path() / "y", text.size());
  shorter.write("a");
  EXPECT_THROW(shorter.close(), ContractError);
}

}  // namespace
}  // namespace memphis
