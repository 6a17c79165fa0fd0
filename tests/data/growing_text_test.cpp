// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/growing_text.h"

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

const std::filesystem::path kGolden = "tests/data/golden";
const std::vector<std::string> kNoStop;

struct Golden {
  const char* file;
  const char* pattern = "";
};
constexpr Golden kTokenizers[] = {{"gpt2.json"},
                                  {"o200k.tiktoken", "o200k"},
                                  {"bpe.model"},
                                  {"llama2.json"},
                                  {"mistral.json"},
                                  {"gemma.json"},
                                  {"metaspace.json"}};

// Adds `text` byte by byte and puts together what is shown; the last element is what take() gives.
std::vector<std::string> shown_of(const std::string& text, const std::vector<std::string>& stop) {
  const ByteTokenizer bytes;
  GrowingText growing(bytes, {}, stop);
  std::vector<std::string> shown;
  bool ended = false;
  for (const std::int32_t id : bytes.encode(text)) {
    ended = growing.add(id);
    if (ended) {
      break;
    }
    shown.emplace_back(growing.show(false));
  }
  shown.emplace_back(growing.show(true));
  shown.push_back(growing.take());
  return shown;
}

TEST(GrowingText, ShowsWholeCharactersOfWhatItsIdsDecodeTo) {
  for (const std::string text : {"na\u00efve \u6f22\u5b57 \U0001f469\u200d\U0001f469 end",
                                 "  two  spaces in front",
                                 " \u2581 one",
                                 "word"}) {
    for (const Golden& golden : kTokenizers) {
      const auto tokenizer = open_tokenizer((kGolden / golden.file).string(), golden.pattern);
      const std::vector<std::int32_t> ids = tokenizer->encode(text);
      GrowingText growing(*tokenizer, {}, kNoStop);
      std::string shown;
      for (const std::int32_t id : ids) {
        EXPECT_FALSE(growing.add(id));
        const std::string more(growing.show(false));
        EXPECT_TRUE(is_utf8(more)) << golden.file;
        shown += more;
      }
      shown += growing.show(true);
      EXPECT_EQ(shown, tokenizer->decode(ids)) << golden.file << ": " << text;
      EXPECT_EQ(growing.take(), shown);
    }
  }
}

// The space that such a tokenizer puts in front of a text is none of it, whatever ids that stand for
// nothing come first, also while it grows; behind a prompt it is.
TEST(GrowingText, BeginsBehindIdsThatStandForNoText) {
  for (const char* file : {"bpe.model", "llama2.json"}) {
    const auto tokenizer = open_tokenizer((kGolden / file).string());
    constexpr std::int32_t bos = 1;  // <s> of both
    ASSERT_EQ(tokenizer->decode(std::vector{bos}), "") << file;
    const std::vector<std::int32_t> word = tokenizer->encode("word");
    const auto text_behind = [&](const std::vector<std::int32_t>& before,
                                 std::vector<std::int32_t> ids) {
      GrowingText growing(*tokenizer, before, kNoStop);
      ids.insert(ids.end(), word.begin(), word.end());
      for (const std::int32_t id : ids) {
        growing.add(id);
      }
      return growing.take();
    };
    EXPECT_EQ(text_behind({}, {}), "word") << file;
    EXPECT_EQ(text_behind({bos}, {}), "word") << file;
    EXPECT_EQ(text_behind({bos}, {bos}), "word") << file << ", which the model has drawn first";
    EXPECT_EQ(text_behind(word, {}), " word") << file;
    EXPECT_EQ(text_behind(word, {bos}), " word") << file;
    EXPECT_EQ(text_behind({}, {tokenizer->vocab_size()}), "word") << file << ": a row of no id";
  }
}

TEST(GrowingText, EndsInFrontOfTheFirstStopText) {
  using Texts = std::vector<std::string>;
  const Texts plain = shown_of("abcabd", {"abd", "zz"});
  EXPECT_EQ(plain, (Texts{"", "", "abc", "", "", "", "abc"})) << "what may begin one is held back";
  EXPECT_EQ(shown_of("abab!", {"abx"}).back(), "abab!") << "and shown where it has not become one";
  EXPECT_EQ(shown_of("xaab", {"ab", "aab"}).back(), "x") << "of two that end alike the earlier";
  EXPECT_EQ(shown_of("xab", {"ab", "b"}).back(), "x");
  EXPECT_EQ(shown_of("stop", {"stop"}).back(), "");
  std::string all;
  const Texts aaab = shown_of("aaab", {"aab"});
  for (std::size_t i = 0; i + 1 < aaab.size(); ++i) {
    all += aaab[i];
  }
  EXPECT_EQ(all, "a");
  EXPECT_EQ(aaab.back(), "a");
  // Within a character too, whose beginning is shown once nothing follows.
  EXPECT_EQ(shown_of("\xC3\xA9\xC3", {"\xA9\xA9"}),
            (Texts{"", "", "\xC3\xA9", "\xC3", "\xC3\xA9\xC3"}));
}

}  // namespace
}  // namespace memphis
