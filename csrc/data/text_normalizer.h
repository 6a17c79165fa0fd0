// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "csrc/data/word_pattern.h"

namespace memphis {

// What a tokenizer makes of a text before it looks for tokens: steps, each on what the one before
// has left.
class TextNormalizer {
 public:
  // In front of a text that is not empty.
  struct Prepend {
    std::string text;
  };
  // Each occurrence, or each match.
  struct Replace {
    std::string what;
    std::string by;
  };
  struct ReplaceMatches {
    WordPattern what;
    std::string by;
  };
  // Unicode's normal forms (UAX 15).
  enum class Form : std::uint8_t { nfc, nfd, nfkc, nfkd };
  using Step = std::variant<Prepend, Replace, ReplaceMatches, Form>;

  void add(Step step) { steps_.push_back(std::move(step)); }
  bool empty() const { return steps_.empty(); }

  // Requires UTF-8. Any number of threads may ask.
  std::string apply(std::string_view text) const;

 private:
  std::vector<Step> steps_;
};

// `text` with `by` for each `what`, from the left.
std::string with_replaced(std::string_view text, std::string_view what, std::string_view by);

}  // namespace memphis
