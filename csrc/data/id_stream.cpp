// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/id_stream.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "csrc/data/digest.h"

namespace memphis {

void IdStream::read(std::uint64_t begin,
                    std::span<std::int32_t> tokens,
                    std::span<std::int32_t> position) const {
  require_within(begin, tokens.size(), position.size());
  ids_.read(begin, tokens, vocab_size_);
  if (!tokens.empty()) {
    read_positions(begin, tokens, position);
  }
}

std::string digest_of_rest(std::string_view head,
                           const InputFile& file,
                           std::uint64_t begin,
                           const std::string& what,
                           FileRecords& records) {
  if (const auto known = records.find(file, what)) {
    return known->digest;
  }
  Digest digest;
  digest.update(head);
  if (begin == file.size()) {
    return digest.hex();
  }
  std::vector<std::byte> piece(kScanBytes);
  for (std::uint64_t at = begin; at < file.size(); at += piece.size()) {
    const auto part =
        std::span(piece).first(std::min<std::uint64_t>(piece.size(), file.size() - at));
    file.read(at, part);
    digest.update(std::span<const std::byte>(part));
  }
  const std::string hex = digest.hex();
  records.put(file, what, {.digest = hex, .largest_id = 0});
  return hex;
}

}  // namespace memphis
