// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace memphis {

// Bytes as tokens: ids 0, 1 and 2 are pad, bos and eos (as in Grok-1's tokenizer), byte b is b + 3.
// Every text encodes and decodes to itself, whatever its encoding.
class ByteTokenizer {
 public:
  static constexpr std::string_view kName = "byte";
  static constexpr std::int32_t kPad = 0;
  static constexpr std::int32_t kBos = 1;
  static constexpr std::int32_t kEos = 2;
  static constexpr std::int32_t kFirstByte = 3;
  static constexpr std::int32_t kVocabSize = kFirstByte + 256;

  static constexpr std::int32_t token_of(std::byte byte) {
    return kFirstByte + std::to_integer<std::int32_t>(byte);
  }

  std::int32_t vocab_size() const { return kVocabSize; }

  // The bytes of `text` alone: whoever starts a document puts kBos in front.
  std::vector<std::int32_t> encode(std::string_view text) const;

  // pad, bos and eos decode to nothing. ContractError on an id outside the vocabulary.
  std::string decode(std::span<const std::int32_t> tokens) const;
};

}  // namespace memphis
