// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/token_stream.h"

#include <algorithm>
#include <string_view>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/data/tokenizer.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

std::vector<TextFile> write_files(const test::TemporaryDirectory& directory,
                                  const std::vector<std::string>& contents) {
  std::vector<TextFile> files;
  for (std::size_t i = 0; i < contents.size(); ++i) {
    files.push_back({.path = directory.write(std::to_string(i), contents[i])});
  }
  return files;
}

std::string fingerprint_of(const std::vector<std::string>& contents) {
  const test::TemporaryDirectory directory;
  return TokenStream(write_files(directory, contents)).fingerprint();
}

TEST(TokenStream, EveryRangeReadsAsTheConcatenationDoes) {
  const test::TemporaryDirectory directory;
  const std::vector<std::string> contents = {"a", "memphis\n", "\xC3\xBC\xFF", "xy"};
  const TokenStream stream(write_files(directory, contents));

  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> position;
  for (const std::string& content : contents) {
    const std::size_t start = tokens.size();
    tokens.push_back(ByteTokenizer::kBos);
    for (const std::int32_t token : ByteTokenizer().encode(content)) {
      tokens.push_back(token);
    }
    tokens.push_back(ByteTokenizer::kEos);
    for (std::size_t i = start; i < tokens.size(); ++i) {
      position.push_back(static_cast<std::int32_t>(i - start));
    }
  }
  ASSERT_EQ(stream.num_tokens(), tokens.size());
  EXPECT_EQ(stream.num_documents(), contents.size());

  for (std::size_t begin = 0; begin <= tokens.size(); ++begin) {
    for (std::size_t end = begin; end <= tokens.size(); ++end) {
      std::vector<std::int32_t> read_tokens(end - begin, -7);
      std::vector<std::int32_t> read_position(end - begin, -7);
      stream.read(begin, read_tokens, read_position);
      EXPECT_TRUE(std::equal(read_tokens.begin(), read_tokens.end(), tokens.data() + begin));
      EXPECT_TRUE(std::equal(read_position.begin(), read_position.end(), position.data() + begin));
    }
  }
}

TEST(TokenStream, RefusesToReadBeyondItsEnd) {
  const test::TemporaryDirectory directory;
  const TokenStream stream(write_files(directory, {"abc"}));
  std::vector<std::int32_t> tokens(2);
  std::vector<std::int32_t> position(2);
  EXPECT_NO_THROW(stream.read(3, tokens, position));
  EXPECT_THROW(stream.read(4, tokens, position), ContractError);
  EXPECT_THROW(stream.read(~std::uint64_t{0}, tokens, position), ContractError);
  EXPECT_THROW(stream.read(0, tokens, {position.data(), 1}), ContractError);
}

TEST(TokenStream, PassesOverWhatIsNotText) {
  const test::TemporaryDirectory directory;
  // The NUL of the last one lies in the second piece that is searched.
  std::string late_nul(200'000, 'x');
  late_nul.back() = '\0';
  const TokenStream stream(write_files(directory, {"", "ab", std::string("a\0b", 3), late_nul}));
  EXPECT_EQ(stream.num_documents(), 1U);
  EXPECT_EQ(stream.num_not_text(), 3);
  EXPECT_EQ(stream.num_tokens(), 4U);
}

TEST(TokenStream, RefusesANamedFileThatIsNotText) {
  const test::TemporaryDirectory directory;
  for (const std::string& content : {std::string(), std::string("a\0b", 3)}) {
    const std::string path = directory.write("named", content);
    const std::string text = test::error_text<DataError>(
        [&] { const TokenStream stream({{.path = path, .named = true}}); });
    EXPECT_TRUE(test::follows_grammar(text));
    EXPECT_NE(text.find(path), std::string::npos) << text;
  }
}

TEST(TokenStream, RefusesAMissingFile) {
  const test::TemporaryDirectory directory;
  const std::string text = test::error_text<DataError>(
      [&] { const TokenStream stream({{.path = directory.path() / "absent"}}); });
  EXPECT_TRUE(test::follows_grammar(text));
}

TEST(TokenStream, FingerprintIsOfContentSizesAndOrder) {
  const std::string base = fingerprint_of({"ab", "c"});
  EXPECT_EQ(base.size(), 32U);
  EXPECT_EQ(base, fingerprint_of({"ab", "c"})) << "the folder's name does not matter";
  EXPECT_EQ(base, fingerprint_of({"ab", std::string("\0", 1), "c"})) << "nor what is passed over";
  EXPECT_NE(base, fingerprint_of({"c", "ab"}));
  EXPECT_NE(base, fingerprint_of({"a", "bc"}));
  EXPECT_NE(base, fingerprint_of({"abc"}));
  EXPECT_NE(base, fingerprint_of({"ab", "d"}));
  // A change behind the first piece of a long file.
  std::string long_text(300'000, 'x');
  const std::string before = fingerprint_of({long_text});
  long_text[290'000] = 'y';
  EXPECT_NE(before, fingerprint_of({long_text}));
}

}  // namespace
}  // namespace memphis
