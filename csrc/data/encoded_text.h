// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "csrc/data/token_stream.h"
#include "csrc/data/tokenizer.h"

namespace memphis {

// One file of text as the tokens of one document, all of them in memory: for texts that are read once.
// bos and eos stand around it where the tokenizer has them.
//
// DataError where the file cannot be read, or is larger than kMaxBytes.
class EncodedText final : public TokenStream {
 public:
  static constexpr std::uint64_t kMaxBytes = std::uint64_t{256} << 20U;

  EncodedText(const std::filesystem::path& file, const Tokenizer& tokenizer);

  std::uint64_t num_tokens() const override { return tokens_.size(); }
  const std::string& fingerprint() const override { return fingerprint_; }
  void read(std::uint64_t begin,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> position) const override;

 private:
  std::vector<std::int32_t> tokens_;
  std::string fingerprint_;
};

}  // namespace memphis
