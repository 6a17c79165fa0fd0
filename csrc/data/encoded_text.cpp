// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/encoded_text.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "csrc/data/digest.h"
#include "csrc/data/document_reader.h"

namespace memphis {

EncodedText::EncodedText(const std::filesystem::path& file, const Tokenizer& tokenizer) {
  DocumentReader reader({.path = file}, kMaxBytes);
  std::string text;
  reader.next(text);
  const SpecialTokens special = tokenizer.special();
  if (special.bos >= 0) {
    tokens_.push_back(special.bos);
  }
  tokenizer.append(text, tokens_);
  if (special.eos >= 0) {
    tokens_.push_back(special.eos);
  }
  fingerprint_ = digest_of(tokenizer.fingerprint() + digest_of(text));
}

void EncodedText::read(std::uint64_t begin,
                       std::span<std::int32_t> tokens,
                       std::span<std::int32_t> position) const {
  require_within(begin, tokens.size(), position.size());
  const auto first = tokens_.begin() + static_cast<std::ptrdiff_t>(begin);
  std::copy(first, first + static_cast<std::ptrdiff_t>(tokens.size()), tokens.begin());
  std::iota(position.begin(), position.end(), static_cast<std::int32_t>(begin));
}

}  // namespace memphis
