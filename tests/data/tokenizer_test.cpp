// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/tokenizer.h"

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

TEST(ByteTokenizer, EveryByteComesBack) {
  std::string text;
  for (int byte = 0; byte < 256; ++byte) {
    text.push_back(static_cast<char>(byte));
  }
  const ByteTokenizer tokenizer;
  const std::vector<std::int32_t> tokens = tokenizer.encode(text);
  ASSERT_EQ(tokens.size(), 256U);
  for (std::size_t byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(tokens[byte], static_cast<std::int32_t>(byte) + 3);
  }
  EXPECT_EQ(tokenizer.decode(tokens), text);
  EXPECT_EQ(tokenizer.vocab_size(), 259);
  EXPECT_LT(tokens.back(), tokenizer.vocab_size());
}

TEST(ByteTokenizer, SpecialIdsDecodeToNothing) {
  const std::vector<std::int32_t> tokens = {
      ByteTokenizer::kBos, 'a' + 3, ByteTokenizer::kPad, 'b' + 3, ByteTokenizer::kEos};
  EXPECT_EQ(ByteTokenizer().decode(tokens), "ab");
  EXPECT_TRUE(ByteTokenizer().encode("").empty());
}

TEST(ByteTokenizer, RefusesIdsOutsideTheVocabulary) {
  for (const std::int32_t token : {-1, 259}) {
    const std::string text = test::error_text<ContractError>(
        [&] { (void)ByteTokenizer().decode(std::vector<std::int32_t>{token}); });
    EXPECT_NE(text.find("token " + std::to_string(token) + " "), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace memphis
