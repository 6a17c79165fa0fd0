// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/chunked_checksum.h"

#include <algorithm>
#include <vector>

#include "csrc/core/parallel.h"

namespace memphis {

void ChunkedChecksum::update(std::span<const std::byte> bytes, const Beside& beside) {
  std::vector<std::uint64_t> hashes((bytes.size() + kChunkBytes - 1) / kChunkBytes);
  parallel_chunks(static_cast<std::int64_t>(hashes.size()), [&](std::int64_t chunk) {
    const auto index = static_cast<std::size_t>(chunk);
    const std::size_t begin = index * kChunkBytes;
    const std::size_t count = std::min(kChunkBytes, bytes.size() - begin);
    Checksum checksum;
    checksum.update(bytes.subspan(begin, count));
    hashes[index] = checksum.value();
    if (beside) {
      beside(begin, count);
    }
  });
  of_chunks_.update(std::as_bytes(std::span(hashes)));
}

}  // namespace memphis
