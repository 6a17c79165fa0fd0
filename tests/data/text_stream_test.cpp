// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_stream.h"

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
  return TextStream(write_files(directory, contents)).fingerprint();
}

TEST(TextStream, EveryRangeReadsAsTheConcatenationDoes) {
  const test::TemporaryDirectory directory;
  const std::vector<std::string> contents = {"a", "memphis\n", "\xC3\xBC\xFF", "xy"};
  const TextStream stream(write_files(directory, contents));

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

TEST(TextStream, RefusesToReadBeyondItsEnd) {
  const test::TemporaryDirectory directory;
  const TextStream stream(write_files(directory, {"abc"}));
  std::vector<std::int32_t> tokens(2);
  std::vector<std::int32_t> position(2);
  EXPECT_NO_THROW(stream.read(3, tokens, position));
  EXPECT_THROW(stream.read(4, tokens, position), ContractError);
  EXPECT_THROW(stream.read(~std::uint64_t{0}, tokens, position), ContractError);
  EXPECT_THROW(stream.read(0, tokens, {position.data(), 1}), ContractError);
}

TEST(TextStream, PassesOverWhatIsNotText) {
  const test::TemporaryDirectory directory;
  // The NUL of the last one lies in the second piece that is searched.
  std::string late_nul(200'000, 'x');
  late_nul.back() = '\0';
  const TextStream stream(
      write_files(directory, {"", "ab", std::string("a\0b", 3), late_nul, "%PDF-1.4"}));
  EXPECT_EQ(stream.num_documents(), 1U);
  ASSERT_EQ(stream.passed_over().size(), 4U);
  EXPECT_EQ(stream.passed_over()[0].reason, "it is empty");
  EXPECT_EQ(stream.passed_over()[2].reason, "its byte 199999 is NUL, so it is not text");
  EXPECT_EQ(stream.passed_over()[2].num_bytes, 200'000U);
  EXPECT_EQ(stream.passed_over()[3].reason, "it holds a PDF document");
  EXPECT_EQ(stream.num_tokens(), 4U);
}

TEST(TextStream, RefusesANamedFileThatIsNotText) {
  const test::TemporaryDirectory directory;
  for (const std::string& content : {std::string(), std::string("a\0b", 3)}) {
    const std::string path = directory.write("named", content);
    const std::string text = test::error_text<DataError>(
        [&] { const TextStream stream({{.path = path, .origin = TextFile::Origin::named}}); });
    EXPECT_TRUE(test::follows_grammar(text));
    EXPECT_NE(text.find(path), std::string::npos) << text;
  }
}

// A pattern asks for what it matches; an empty file has nothing to lose.
TEST(TextStream, RefusesWhatAPatternMatchesAndIsNotText) {
  const test::TemporaryDirectory directory;
  const auto open = [&](const std::string& content) {
    return TextStream(
        {{.path = directory.write("a", content), .origin = TextFile::Origin::matched}});
  };
  const std::string text = test::error_text<DataError>([&] { open(std::string("a\0b", 3)); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find("name the folder"), std::string::npos) << text;
  EXPECT_EQ(open("").passed_over().size(), 1U);
}

// JSON is a part of many a source tree; records are none, and neither is a corpus by its own name.
TEST(TextStream, AJsonDocumentAmongSourcesIsText) {
  const test::TemporaryDirectory directory;
  const std::string document = "{\n \"name\": \"package\"\n}\n";
  const std::string records = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
  const TextStream stream(write_files(directory, {"words", document, records}));
  EXPECT_EQ(stream.num_documents(), 2U);
  ASSERT_EQ(stream.passed_over().size(), 1U);
  EXPECT_EQ(stream.passed_over()[0].reason, "it holds JSON lines, which are not parsed");
  for (const std::string& content : {document, records}) {
    const std::string path = directory.write("named.json", content);
    const std::string text = test::error_text<DataError>(
        [&] { const TextStream named({{.path = path, .origin = TextFile::Origin::named}}); });
    EXPECT_NE(text.find("not parsed"), std::string::npos) << text;
    EXPECT_NE(text.find("jq -r"), std::string::npos) << text;
  }
}

TEST(TextStream, KnowsWhatOfADocumentIsNotUtf8) {
  const test::TemporaryDirectory directory;
  const TextStream stream(write_files(directory, {"plain", "\xEF\xBB\xBFmarked", "\xE9t\xE9!"}));
  EXPECT_FALSE(stream.documents()[0].begins_with_mark);
  EXPECT_TRUE(stream.documents()[1].begins_with_mark);
  EXPECT_EQ(stream.documents()[1].share_outside_utf8, 0);
  EXPECT_EQ(stream.documents()[2].share_outside_utf8, 0.5);
}

TEST(TextStream, RefusesAMissingFile) {
  const test::TemporaryDirectory directory;
  const std::string text = test::error_text<DataError>(
      [&] { const TextStream stream({{.path = directory.path() / "absent"}}); });
  EXPECT_TRUE(test::follows_grammar(text));
}

// Of every file held open, of the first alone, and of none.
class ChangedFile : public testing::TestWithParam<std::size_t> {
 protected:
  ChangedFile() : stream(write_files(directory, {"first", "second text"}), GetParam()) {}

  std::string read_all() const {
    std::vector<std::int32_t> tokens(stream.num_tokens());
    std::vector<std::int32_t> position(tokens.size());
    stream.read(0, tokens, position);
    return ByteTokenizer().decode(tokens);
  }
  bool held() const { return GetParam() == 2; }
  void expect_error(std::string_view what) const {
    const std::string text = test::error_text<DataError>([&] { read_all(); });
    EXPECT_TRUE(test::follows_grammar(text));
    EXPECT_NE(text.find(second.string()), std::string::npos) << text;
    EXPECT_NE(text.find(what), std::string::npos) << text;
  }

  test::TemporaryDirectory directory;
  std::filesystem::path second = directory.path() / "1";
  TextStream stream;
};

TEST_P(ChangedFile, ThatWasDeletedIsReadIfItWasHeld) {
  EXPECT_EQ(read_all(), "firstsecond text");
  std::filesystem::remove(second);
  if (held()) {
    EXPECT_EQ(read_all(), "firstsecond text");
  } else {
    expect_error("No such file");
  }
}

TEST_P(ChangedFile, ThatWasReplacedIsReadAsItWasOrRefused) {
  std::filesystem::rename(directory.write("new", "other words"), second);
  std::filesystem::last_write_time(second, std::filesystem::file_time_type::min());
  if (held()) {
    EXPECT_EQ(read_all(), "firstsecond text");
  } else {
    expect_error("has changed since the run began");
  }
}

TEST_P(ChangedFile, ThatWasCutShortIsRefused) {
  std::filesystem::resize_file(second, 3);
  expect_error(held() ? "has no byte 3 any more" : "has changed since the run began");
}

// A file that is emptied and written again has the bytes of its hole at first.
TEST_P(ChangedFile, ThatHasANulIsRefused) {
  std::filesystem::resize_file(second, 3);
  std::filesystem::resize_file(second, 11);
  expect_error(held() ? "has a NUL byte at 3" : "has changed since the run began");
}

INSTANTIATE_TEST_SUITE_P(Held, ChangedFile, testing::Values(0, 1, 2));

TEST(TextStream, FingerprintIsOfContentSizesAndOrder) {
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
