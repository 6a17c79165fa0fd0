// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/tokenizer.h"

#include "csrc/core/error.h"

namespace memphis {

std::vector<std::int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> tokens;
  tokens.reserve(text.size());
  for (const char letter : text) {
    tokens.push_back(token_of(static_cast<std::byte>(letter)));
  }
  return tokens;
}

std::string ByteTokenizer::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  text.reserve(tokens.size());
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= kVocabSize) {
      require(false,
              "token " + std::to_string(token) + " has no text (the byte tokenizer has ids 0 to " +
                  std::to_string(kVocabSize - 1) + "); mask the ids beyond them when sampling");
    }
    if (token >= kFirstByte) {
      text.push_back(static_cast<char>(token - kFirstByte));
    }
  }
  return text;
}

}  // namespace memphis
