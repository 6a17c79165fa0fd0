// SPDX-License-Identifier: Apache-2.0
// Ids of tests/data/golden, which tests/peers/tokenizers_peer.py --golden has from the original
// programs, and what a tokenizer is refused for.
#include <filesystem>
#include <fstream>
#include <random>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/data/byte_pair.h"
#include "csrc/data/text_normalizer.h"
#include "csrc/data/tokenizer.h"
#include "csrc/data/utf8.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const fs::path kGolden = "tests/data/golden";

TEST(Tokenizers, GiveTheIdsOfTheirOriginals) {
  const Json root = parse_json(read_text(kGolden / "ids.json")).value();
  const auto texts = root.at("texts").get<std::vector<std::string>>();
  ASSERT_EQ(root.at("tokenizers").size(), 5U);
  for (const auto& [file, golden] : root.at("tokenizers").items()) {
    const auto tokenizer =
        open_tokenizer((kGolden / file).string(), golden.at("pattern").get<std::string>());
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const auto ids = golden.at("ids").at(i).get<std::vector<std::int32_t>>();
      EXPECT_EQ(tokenizer->encode(texts[i]), ids) << file << ": " << texts[i];
      if (golden.contains("decoded")) {
        EXPECT_EQ(tokenizer->decode(ids), golden.at("decoded").at(i).get<std::string>()) << file;
      } else if (texts[i].find("<|") == std::string::npos) {
        EXPECT_EQ(tokenizer->decode(ids), texts[i]) << file;
      }
    }
  }
}

// Vocabularies of characters, in the ways in which such files are written, and normalized text.
TEST(Tokenizers, OfCharactersGiveTheIdsOfTheirOriginals) {
  const Json root = parse_json(read_text(kGolden / "character_ids.json")).value();
  const auto texts = root.at("texts").get<std::vector<std::string>>();
  ASSERT_EQ(root.at("tokenizers").size(), 5U);
  for (const auto& [file, golden] : root.at("tokenizers").items()) {
    const auto tokenizer = open_tokenizer((kGolden / file).string());
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const auto ids = golden.at("ids").at(i).get<std::vector<std::int32_t>>();
      EXPECT_EQ(tokenizer->encode(texts[i]), ids) << file << ": " << texts[i];
      // `tokenizers` shows an added token as it was looked for, which none ever was in a text.
      if (texts[i].find("</s>") == std::string::npos) {
        EXPECT_EQ(tokenizer->decode(ids), golden.at("decoded").at(i).get<std::string>())
            << file << ": " << texts[i];
      }
    }
  }
}

// With bos, or where there is none with its text alone, as when it is trained on; with something in
// any case.
TEST(Tokenizers, BeginADocument) {
  const auto with_bos = open_tokenizer((kGolden / "bpe.model").string());
  ASSERT_GE(with_bos->special().bos, 0);
  std::vector<std::int32_t> expected = with_bos->encode("a word");
  expected.insert(expected.begin(), with_bos->special().bos);
  EXPECT_EQ(with_bos->begin_document("a word"), expected);
  EXPECT_EQ(with_bos->begin_document(""), std::vector{with_bos->special().bos});
  const auto without = open_tokenizer((kGolden / "llama2.json").string());
  ASSERT_LT(without->special().bos, 0);
  ASSERT_GT(without->special().eos, 0);
  EXPECT_EQ(without->begin_document("a word"), without->encode("a word"));
  EXPECT_EQ(without->begin_document(""), std::vector{without->special().eos});
}

TEST(Tokenizers, ReadInvalidUtf8AsPythonReplacesIt) {
  // bytes.decode(errors="replace") of each.
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a\xFF"
       "b",
       "a\uFFFDb"},
      {"\xE6\xBC", "\uFFFD"},  // a character that breaks off
      {"\xE6\xBC"
       "x",
       "\uFFFDx"},
      {"\xC0\xAF", "\uFFFD\uFFFD"},                      // overlong
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},            // a surrogate
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},  // beyond U+10FFFF
      {"\xF0\x9F\x91", "\uFFFD"}};
  const auto tokenizer = open_tokenizer((kGolden / "gpt2.json").string());
  for (const auto& [bytes, replaced] : cases) {
    EXPECT_EQ(tokenizer->encode(bytes), tokenizer->encode(replaced)) << replaced;
  }
}

// Of conformance tests of Unicode and of what is known to go wrong.
TEST(TextNormalizer, GivesTheNormalForms) {
  using Form = TextNormalizer::Form;
  struct Case {
    const char* text;
    const char* nfc;
    const char* nfkd;
  };
  const std::vector<Case> cases = {
      {"plain", "plain", "plain"},
      {"cafe\u0301.", "caf\u00e9.", "cafe\u0301."},
      {"e\u0301e\u0301", "\u00e9\u00e9", "e\u0301e\u0301"},
      {"q\u0307\u0323x", "q\u0323\u0307x", "q\u0323\u0307x"},
      {"\u1100\u1161\u11a8", "\uac01", "\u1100\u1161\u11a8"},
      {"\u1112\u1170\u11a7\u1191", "\ud6fc\u11a7\u1191", "\u1112\u1170\u11a7\u1191"},
      {"\ufb01 \uff21", "\ufb01 \uff21", "fi A"},
      {"\u212b", "\u00c5", "A\u030a"}};
  for (const Case& each : cases) {
    TextNormalizer nfc;
    nfc.add(Form::nfc);
    EXPECT_EQ(nfc.apply(each.text), each.nfc);
    TextNormalizer nfkd;
    nfkd.add(Form::nfkd);
    EXPECT_EQ(nfkd.apply(each.text), each.nfkd);
  }
}

TEST(Utf8, PlacesThatAreNoneAreCountedHoweverTheTextIsCut) {
  const std::string text = "na\u00efve \xE6\xBC \xFF\xC0\xAF \U0001f469 \xF0\x9F\x91";
  std::uint64_t expected = 0;
  (void)with_replacements(text, expected);
  ASSERT_EQ(expected, 5U);
  for (std::size_t bytes = 1; bytes <= text.size(); ++bytes) {
    Utf8Count count;
    for (std::size_t at = 0; at < text.size(); at += bytes) {
      count.add(std::string_view(text).substr(at, bytes));
    }
    count.finish();
    EXPECT_EQ(count.places(), expected) << bytes;
    EXPECT_EQ(count.first_byte(), 7U) << bytes;
  }
}

// The definition: the pair of the lowest rank, the leftmost of equal ones, until none is left.
std::vector<std::int32_t> merged_by_definition(const MergeTable& merges,
                                               std::vector<std::int32_t> ids) {
  for (;;) {
    std::size_t best = ids.size();
    MergeTable::Merge merge{MergeTable::kNone, -1};
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const MergeTable::Merge here = merges.find(ids[i], ids[i + 1]);
      if (here.rank < merge.rank) {
        best = i;
        merge = here;
      }
    }
    if (best == ids.size()) {
      return ids;
    }
    ids[best] = merge.id;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(MergeWord, FollowsTheDefinitionAtAnyLength) {
  std::mt19937 random(7);
  const auto below = [&](std::int32_t n) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(n));
  };
  for (int round = 0; round < 200; ++round) {
    MergeTable merges;
    const std::int32_t letters = 2 + below(4);
    std::int32_t next = letters;
    for (std::uint32_t rank = 0; rank < 40; ++rank) {
      merges.add(below(next), below(next), {rank, next});
      ++next;
    }
    for (const std::size_t length : {1U, 2U, 3U, 47U, 48U, 49U, 200U}) {
      std::vector<std::int32_t> word(length);
      for (std::int32_t& id : word) {
        id = below(letters);
      }
      const std::vector<std::int32_t> expected = merged_by_definition(merges, word);
      word.resize(merge_word(merges, word));
      EXPECT_EQ(word, expected) << length;
    }
  }
}

TEST(Tokenizers, AreRefusedByNameWhereTheyAreNotWhatTheyShouldBe) {
  const test::TemporaryDirectory directory;
  const std::string bpe = read_text(kGolden / "gpt2.json");
  const std::string ranks = read_text(kGolden / "gpt2.tiktoken");
  const std::string model = read_text(kGolden / "bpe.model");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = bpe;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  struct Case {
    std::string content;
    std::string pattern;
    std::string expected;
  };
  const std::vector<Case> cases = {
      {"", "", "is empty"},
      {bpe.substr(0, bpe.size() / 2), "", "breaks off or is damaged"},
      {"{}", "", "lacks what a tokenizer.json has"},
      {with("\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}"),
       "",
       "its normalizer is Lowercase"},
      {with("\"type\":\"BPE\"", "\"type\":\"Unigram\""), "", "its model is Unigram"},
      {with("\"type\":\"ByteLevel\"", "\"type\":\"Whitespace\""),
       "",
       "its pre-tokenizer is Whitespace"},
      {with("\"merges\":[", "\"merges\":[[\"zz\",\"qq\"],"), "", "is not in the vocabulary"},
      {with("\"lstrip\":false", "\"lstrip\":true"), "", "has lstrip"},
      {ranks, "", "set data.tokenizer_pattern"},
      {ranks, "(", "is no regular expression"},
      {ranks + "YQ== 1000\nYQ==\n", "gpt2", "is no base64 and a rank"},
      {ranks + "eHh4eHg= 3\n", "gpt2", "gives rank 3 again"},
      {ranks.substr(ranks.find('\n') + 1), "gpt2", "no id for byte 0"},
      {bpe, "gpt2", "is no tiktoken file"},
      {model, "gpt2", "is no tiktoken file"},
      {model.substr(0, model.size() / 2), "", "as a SentencePiece model"},
      {"neither of them", "", "as a SentencePiece model"}};
  for (const Case& each : cases) {
    const std::string path = directory.write("tokenizer", each.content);
    const std::string text =
        test::error_text<DataError>([&] { (void)open_tokenizer(path, each.pattern); });
    EXPECT_NE(text.find(each.expected), std::string::npos)
        << text << "\nexpected: " << each.expected;
    EXPECT_TRUE(test::follows_grammar(text)) << text;
  }
}

// Also the pattern of a tiktoken file, which is not in it.
TEST(Tokenizers, AFolderOfTheirFilesOpensAsTheSameOne) {
  const Json root = parse_json(read_text(kGolden / "ids.json")).value();
  const auto texts = root.at("texts").get<std::vector<std::string>>();
  struct Case {
    const char* file;
    const char* pattern;
  };
  const std::vector<Case> cases = {{"gpt2.json", ""},
                                   {"bpe.model", ""},
                                   {"gpt2.tiktoken", "qwen"},
                                   {"gpt2.tiktoken", R"(\s+|[^\s]{1,3})"}};
  for (const Case& each : cases) {
    const auto opened = open_tokenizer((kGolden / each.file).string(), each.pattern);
    const test::TemporaryDirectory folder;
    for (const TokenizerFile& file : opened->files()) {
      folder.write(file.name, file.content);
    }
    const auto again = open_tokenizer(folder.path().string());
    EXPECT_EQ(again->fingerprint(), opened->fingerprint()) << each.file << " " << each.pattern;
    for (const std::string& text : texts) {
      EXPECT_EQ(again->encode(text), opened->encode(text)) << each.pattern << ": " << text;
    }
  }
}

TEST(Tokenizers, AFolderStandsForTheOneInIt) {
  const test::TemporaryDirectory directory;
  directory.write("a/tokenizer.json", read_text(kGolden / "gpt2.json"));
  directory.write("none/x.txt", "x");
  const auto named = open_tokenizer((kGolden / "gpt2.json").string());
  const auto found = open_tokenizer((directory.path() / "a").string());
  EXPECT_EQ(found->fingerprint(), named->fingerprint());
  EXPECT_NE(found->fingerprint(), open_tokenizer((kGolden / "o200k.json").string())->fingerprint());
  EXPECT_EQ(found->files(),
            (std::vector<TokenizerFile>{
                {.name = "tokenizer.json", .content = read_text(kGolden / "gpt2.json")}}));
  EXPECT_EQ(found->special().eos, 0);
  EXPECT_EQ(open_tokenizer("none"), nullptr);
  const std::string text = test::error_text<DataError>(
      [&] { (void)open_tokenizer((directory.path() / "none").string()); });
  EXPECT_NE(text.find("holds no tokenizer"), std::string::npos) << text;
}

}  // namespace
}  // namespace memphis
