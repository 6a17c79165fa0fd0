// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/word_pattern.h"

#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

std::vector<std::string> words(std::string_view pattern, std::string_view text) {
  const WordPattern compiled(pattern);
  std::vector<std::string> result;
  for (std::size_t at = 0; at < text.size();) {
    const WordPattern::Match match = compiled.find(text, at);
    if (match.begin == match.end) {
      break;
    }
    result.emplace_back(text.substr(match.begin, match.end - match.begin));
    at = match.end;
  }
  return result;
}

// The engines of tokenizers have Unicode's White_Space: U+0085, U+2028 and U+3000 are, and U+180E,
// which Unicode 6.3 took out and Perl's \s has, is not.
TEST(WordPattern, SpaceIsUnicodesWhiteSpace) {
  const std::string text = "a\u0085b\u2028c\u3000d\u180Ee";
  const std::vector<std::string> expected = {"a", "b", "c", "d\u180Ee"};
  EXPECT_EQ(words(R"(\S+)", text), expected);
  EXPECT_EQ(words(R"([^\s]+)", text), expected);
  EXPECT_EQ(words(R"(\s)", text), (std::vector<std::string>{"\u0085", "\u2028", "\u3000"}));
  EXPECT_EQ(words(R"([x\s])", "a \u180E"), (std::vector<std::string>{" "}));
}

TEST(WordPattern, WhatIsNoPatternIsRefused) {
  const std::string text = test::error_text<DataError>([] { WordPattern("a(b"); });
  EXPECT_TRUE(test::follows_grammar(text)) << text;
}

}  // namespace
}  // namespace memphis
