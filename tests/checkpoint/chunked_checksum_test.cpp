// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/chunked_checksum.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include <gtest/gtest.h>
#include <omp.h>

namespace memphis {
namespace {

constexpr std::size_t kChunk = ChunkedChecksum::kChunkBytes;

// Three chunks and a part of one.
std::vector<std::byte> some_bytes() {
  std::vector<std::byte> bytes(3 * kChunk + 1001);
  std::uint64_t state = 1;
  for (std::byte& byte : bytes) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    byte = static_cast<std::byte>(state >> 56U);
  }
  return bytes;
}

std::uint64_t hash_of(std::span<const std::byte> bytes) {
  ChunkedChecksum checksum;
  checksum.update(bytes);
  return checksum.value();
}

TEST(ChunkedChecksum, IsTheSameOnAnyNumberOfThreadsAndInWholeChunks) {
  const std::vector<std::byte> bytes = some_bytes();
  const int num_threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const std::uint64_t alone = hash_of(bytes);
  omp_set_num_threads(3);
  EXPECT_EQ(hash_of(bytes), alone);
  omp_set_num_threads(num_threads);
  ChunkedChecksum in_parts;
  const std::span<const std::byte> all(bytes);
  in_parts.update(all.first(2 * kChunk));
  in_parts.update({});
  in_parts.update(all.subspan(2 * kChunk));
  EXPECT_EQ(in_parts.value(), alone);
}

TEST(ChunkedChecksum, TellsOfABitInAnyChunkAndOfTheirOrder) {
  std::vector<std::byte> bytes = some_bytes();
  const std::uint64_t before = hash_of(bytes);
  for (const std::size_t at : {std::size_t{0}, kChunk - 1, kChunk, 3 * kChunk, bytes.size() - 1}) {
    bytes[at] ^= std::byte{1};
    EXPECT_NE(hash_of(bytes), before) << "byte " << at;
    bytes[at] ^= std::byte{1};
  }
  EXPECT_EQ(hash_of(bytes), before);
  std::swap_ranges(bytes.begin(), bytes.begin() + kChunk, bytes.begin() + kChunk);
  EXPECT_NE(hash_of(bytes), before);
}

TEST(ChunkedChecksum, ShowsEachByteOnceToWhatIsDoneBesideIt) {
  const std::vector<std::byte> bytes = some_bytes();
  std::vector<int> seen(bytes.size());
  std::mutex mutex;
  ChunkedChecksum().update(bytes, [&](std::size_t begin, std::size_t count) {
    const std::lock_guard lock(mutex);
    for (std::size_t i = begin; i < begin + count; ++i) {
      ++seen[i];
    }
  });
  EXPECT_EQ(seen, std::vector<int>(bytes.size(), 1));
}

}  // namespace
}  // namespace memphis
