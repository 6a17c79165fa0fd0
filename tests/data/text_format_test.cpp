// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_format.h"

#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

using namespace std::string_view_literals;
using namespace std::string_literals;
using Kind = TextFormat::Kind;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::optional<TextFormat> recognise(const std::string& name,
                                    std::string_view head,
                                    bool is_whole = true) {
  return recognise_format(name, bytes_of(head), is_whole);
}

struct Sample {
  const char* name;
  std::string head;
  const char* format;
  const char* advice;
};

void PrintTo(const Sample& sample, std::ostream* out) {
  *out << sample.name;
}

std::string wide(std::u16string_view text, bool big_endian = false) {
  std::string bytes;
  for (const char16_t unit : text) {
    const char low = static_cast<char>(unit & 0xFF);
    const char high = static_cast<char>(unit >> 8);
    bytes += big_endian ? high : low;
    bytes += big_endian ? low : high;
  }
  return bytes;
}

std::string with_nul(std::string_view magic) {
  return std::string(magic) + std::string(60, '\0') + "more";
}

std::vector<Sample> samples() {
  // A length of 18 bytes and its checksum.
  const std::string tfrecord =
      "\x12\0\0\0\0\0\0\0\x24\x1f\x64\x25"s + std::string(18, 'x') + "\0\0\0\0"s;
  return {
      {"x.jsonl.gz", with_nul("\x1F\x8B\x08"), "gzip", "`gunzip -k x.jsonl.gz`"},
      {"x.xz", with_nul("\xFD\x37zXZ\0"sv), "xz", "`unxz -k x.xz`"},
      {"x.zst", with_nul("\x28\xB5\x2F\xFD"), "zstd", "`unzstd x.zst`"},
      {"x.bz2", with_nul("BZh91AY&SY"), "bzip2", "`bunzip2 -k x.bz2`"},
      {"x.zip", with_nul("PK\x03\x04"), "a zip archive", "`unzip x.zip"},
      {"x.npz", with_nul("PK\x03\x04"), "NumPy", "numpy.load"},
      {"x.docx", with_nul("PK\x03\x04"), "a document (docx)", "pandoc"},
      {"model.pt", with_nul("PK\x03\x04"), "a PyTorch file", "pickle"},
      {"x.tar",
       std::string(257, 'x') + with_nul("ustar"),
       "a tar archive",
       "tar -C text -xf x.tar"},
      {"x.parquet", with_nul("PAR1"), "a Parquet table", "read_parquet"},
      {"x.arrow", with_nul("ARROW1"), "an Arrow table", "datasets"},
      {"y.arrow", with_nul("\xFF\xFF\xFF\xFF"), "an Arrow stream", "datasets"},
      {"x.npy", with_nul("\x93NUMPY"), "a NumPy array", "numpy.load"},
      {"x.h5", with_nul("\x89HDF\r\n\x1A\n"), "an HDF5 file", "h5dump"},
      {"x.db", with_nul("SQLite format 3\0"sv), "an SQLite database", "sqlite3 x.db"},
      {"x.pkl", with_nul("\x80\x04\x95"), "a Python pickle", "the program that made it"},
      {"x.pdf", "%PDF-1.7\n", "a PDF document", "`pdftotext x.pdf text.txt`"},
      {"x.rtf", "{\\rtf1 text}", "an RTF document", "unrtf"},
      {"x.safetensors", "\x40\0\0\0\0\0\0\0{\"a\":1}"s, "a safetensors file", "weights are for"},
      {"x.gguf", with_nul("GGUF"), "a GGUF model", "weights are for"},
      {"x.idx", with_nul("MMIDIDX\0\0"sv), "the index of a Megatron dataset", "the text"},
      {"fineweb_train_000001.bin",
       with_nul("\x88\xD8\x34\x01"),
       "tokens of llm.c, of GPT-2",
       "text"},
      {"llama.bin", with_nul("\xA1\xD9\x34\x01"), "tokens of llm.c, of Llama 3", "text"},
      {"train.bin", with_nul("\x10\x20"), "tokens perhaps", "the text"},
      {"x.tfrecord", tfrecord, "a TFRecord file", "TFRecordDataset"},
      {"x.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs"},
      {"program", with_nul("\x7F\x45LF"), "an ELF program", "leave it out"},
      {"x.png", with_nul("\x89PNG\r\n\x1A\n"), "a PNG picture", "leave it out"},
      {"en.txt",
       "\xFF\xFE" + wide(u"a quiet judge"),
       "UTF-16 text",
       "iconv -f UTF-16 -t UTF-8 en.txt"},
      {"zh.txt", "\xFF\xFE" + wide(u"\u5c71\u6c34\u6728"), "UTF-16 text", "iconv -f UTF-16"},
      {"be.txt", "\xFE\xFF" + wide(u"\u5c71\u6c34", true), "UTF-16 text", "iconv -f UTF-16"},
      {"no_mark.txt", wide(u"a quiet judge sold the bridge"), "UTF-16LE text", "iconv -f UTF-16LE"},
      {"no_mark.txt", wide(u"a quiet judge sold it", true), "UTF-16BE text", "iconv -f UTF-16BE"},
      {"32.txt", "\xFF\xFE\0\0a\0\0\0"s, "UTF-32 text", "iconv -f UTF-32"},
      {"32.txt", "a\0\0\0b\0\0\0c\0\0\0d\0\0\0"s, "UTF-32LE text", "iconv -f UTF-32LE"},
      {"a b.gz", with_nul("\x1F\x8B\x08"), "gzip", "`gunzip -k 'a b.gz'`"},
  };
}

class KnownFormat : public testing::TestWithParam<Sample> {};

TEST_P(KnownFormat, IsNamedWithTheCommandThatConvertsIt) {
  const Sample& sample = GetParam();
  for (const bool is_whole : {true, false}) {
    const auto format = recognise(sample.name, sample.head, is_whole);
    ASSERT_TRUE(format.has_value());
    EXPECT_NE(format->kind, Kind::json_document);
    EXPECT_NE(format->kind, Kind::json_records);
    EXPECT_NE(format->name.find(sample.format), std::string::npos) << format->name;
    EXPECT_NE(format->advice.find(sample.advice), std::string::npos) << format->advice;
  }
}

INSTANTIATE_TEST_SUITE_P(All, KnownFormat, testing::ValuesIn(samples()));

// Words that formats begin with are words of texts too.
TEST(TextFormat, TextsAreNotTakenForFormats) {
  for (const char* text : {"PAR1 is a magic word.\n",
                           "ORCS came down the hill.\n",
                           "MZ, my friend, said BM.\n",
                           "BM\n",
                           "GIF89a was a format.\n",
                           "GGUF files are models.\n",
                           "ID3 tags\n",
                           "PK\n",
                           "BZh is how it begins\n",
                           "RIFF and OggS\n",
                           "ftyp\n",
                           "[1] A footnote.\n",
                           "[link](http://host.invalid)\n",
                           "{ int x = 1; }\n",
                           "{'a': 1}\n",
                           "{\"a\": 1} and then words\n",
                           "{\"a\": 1,\n// a comment\n\"b\": 2}\n",
                           "[section]\nkey = 1\n",
                           "12345\n67890\n",
                           "\"quoted\"\n",
                           "\xE5\xB1\xB1\xE6\xB0\xB4\n",
                           "caf\xE9 in Latin-1\n",
                           "\xEF\xBB\xBFtext behind a mark\n",
                           "\n\n",
                           "a"}) {
    EXPECT_FALSE(recognise("x.txt", text).has_value()) << text;
  }
}

TEST(TextFormat, RecordsAreJsonWhateverTheirFilesName) {
  const std::string line = "{\"id\": 1, \"text\": \"some words\", \"meta\": {\"url\": \"x\"}}\n";
  for (const std::string& text : {line + line,
                                  "\n" + line + "\n" + line + "\n",
                                  "\xEF\xBB\xBF" + line + line,
                                  "[" + line + "," + line + "]\n",
                                  "[1, 2]\n[3, 4]\n"s,
                                  "{\n  \"text\": \"x\"\n}\n{\n  \"text\": \"y\"\n}\n"s}) {
    const auto format = recognise("x.txt", text);
    ASSERT_TRUE(format.has_value()) << text;
    const bool lines = text.find("some words") < 30 && text[0] != '[';
    EXPECT_EQ(format->kind, lines ? Kind::json_lines : Kind::json_records) << text;
    EXPECT_NE(format->name.find("not parsed"), std::string::npos) << format->name;
  }
  EXPECT_EQ(recognise("x.jsonl", line)->kind, Kind::json_lines) << "one line is a record there";
  EXPECT_EQ(recognise("x.json", line)->kind, Kind::json_document);
  EXPECT_EQ(recognise("x.json", "[1, 2]")->kind, Kind::json_document);
}

// A fault in the first lines makes no text of them: their reader names it.
TEST(TextFormat, WhatIsNamedAsLinesOfJsonIsSoWhateverTheFirstLinesAre) {
  const std::string line = "{\"text\": \"some words\"}\n";
  EXPECT_EQ(recognise("x.jsonl", "{\"text\": \"never ends}\n")->kind, Kind::json_lines);
  for (const std::string& text : {"{\"text\": \"never ends}\n" + line,
                                  line + "{\"text\": \n" + line,
                                  "{\"text\": \"caf\xE9\"}\n" + line,
                                  "{\"text\": \"a\", \"n\": NaN}\n" + line,
                                  "{\"text\": \"\\ud800\"}\n" + line,
                                  "{\"text\": \"a\"},\n{\"text\": \"b\"},\n"s,
                                  "// made by hand\n" + line,
                                  "words\n"s,
                                  "\n\n"s}) {
    for (const char* name : {"x.jsonl", "x.ndjson", "x.JSONL"}) {
      for (const bool is_whole : {true, false}) {
        const auto format = recognise(name, text, is_whole);
        ASSERT_TRUE(format.has_value()) << text;
        EXPECT_EQ(format->kind, Kind::json_lines) << text;
      }
    }
  }
  EXPECT_EQ(recognise("x.jsonl", "[1, 2]\n")->kind, Kind::json_records);
  EXPECT_EQ(recognise("x.jsonl", "{\n \"text\": \"a\"\n}\n")->kind, Kind::json_records);
  EXPECT_EQ(recognise("x.jsonl", with_nul("PAR1"))->kind, Kind::other);
}

// Of a value that is longer than what is read of it.
TEST(TextFormat, JsonIsKnownByItsBeginning) {
  std::string record = "{\"text\": \"";
  record.append(500, 'x');
  EXPECT_EQ(recognise("x", record, false)->kind, Kind::json_lines);
  EXPECT_EQ(recognise("x", "[" + record, false)->kind, Kind::json_records);
  EXPECT_EQ(recognise("x", "{\n  \"version\": 1,\n  \"files\": {", false)->kind,
            Kind::json_document);
  EXPECT_FALSE(recognise("x", record, true).has_value()) << "it never ends";
  EXPECT_FALSE(recognise("x", "{ not JSON at all", false).has_value());
  // Cut within a character.
  EXPECT_EQ(recognise("x", "{\"text\": \"\xE5\xB1", false)->kind, Kind::json_lines);
}

TEST(TextFormat, TheCommandForRecordsNamesTheKeyOfTheirText) {
  const auto filter = [](const std::string& record) {
    const std::string advice = recognise("x.jsonl", record)->advice;
    return advice.substr(advice.find("jq -r '") + 7,
                         advice.rfind("' x.jsonl") - advice.find("jq -r '") - 7);
  };
  EXPECT_EQ(filter(R"({"id": "abcdefgh", "text": "x"})"), ".text");
  EXPECT_EQ(filter(R"({"url": "http", "content": "x"})"), ".content");
  EXPECT_EQ(filter(R"({"messages": [{"role": "user", "content": "x"}]})"), ".messages[].content");
  EXPECT_EQ(filter(R"({"id": "a", "story": "long words"})"), ".story");
  EXPECT_EQ(filter(R"({"a'; rm -rf": "long words", "b": "x"})"), ".b") << "no words of a file's";
  EXPECT_NE(recognise("x.json", R"([{"story": "x"}])")->advice.find("'.[].story'"),
            std::string::npos);
}

TEST(TextFormat, MegatronTokensAreKnownByTheIndexBesideThem) {
  const test::TemporaryDirectory directory;
  directory.write("corpus.idx", "MMIDIDX\0\0more"sv);
  const auto format = recognise((directory.path() / "corpus.bin").string(), "\x10\x20\x30");
  ASSERT_TRUE(format.has_value());
  EXPECT_NE(format->name.find("Megatron"), std::string::npos);
  EXPECT_FALSE(recognise((directory.path() / "other.bin").string(), "words").has_value());
}

// As much of them as is looked at, of which the header is a small part.
TEST(TextFormat, IdsAreNotTakenForTextOfWideCharacters) {
  const auto file = [](std::string_view mark, std::size_t item) {
    std::string bytes(mark);
    bytes.resize(1024);
    for (std::uint32_t id = 1; bytes.size() < kFormatBytes; id = id * 5 % 251 + 1) {
      bytes += static_cast<char>(id);
      bytes.append(item - 1, '\0');
    }
    return bytes;
  };
  const std::string gpt2 = file("\x88\xD8\x34\x01"sv, 2);
  const std::string llama3 = file("\xA1\xD9\x34\x01"sv, 4);
  const std::string llmq = file("BIN.TOK\n"sv, 4);
  for (const std::string& bytes : {gpt2, llama3, llmq}) {
    const auto format = recognise("x.bin", bytes, false);
    ASSERT_TRUE(format.has_value());
    EXPECT_EQ(format->kind, Kind::token_file) << format->name;
    const auto text = recognise("x.txt", bytes.substr(1024), false);
    ASSERT_TRUE(text.has_value());
    EXPECT_NE(text->name.find("UTF-"), std::string::npos) << "what these ids look like";
  }
}

TEST(TextFormat, BytesOutsideUtf8AreCounted) {
  const auto count = [](std::string_view text) { return count_bytes_outside_utf8(bytes_of(text)); };
  EXPECT_EQ(count(""), 0U);
  EXPECT_EQ(count("ascii \xC3\xA9 \xE5\xB1\xB1 \xF0\x9F\x98\x80"), 0U);
  EXPECT_EQ(count("caf\xE9 au lait"), 1U);
  EXPECT_EQ(count("\xFF\x80\xC0"), 3U);
  EXPECT_EQ(count("ends within \xE5\xB1"), 0U);
  EXPECT_EQ(count("\xE5\xE5\xB1\xB1"), 1U);
}

TEST(ShellWord, QuotesWhatAShellWouldTakeApart) {
  EXPECT_EQ(shell_word("a/b-c.txt"), "a/b-c.txt");
  EXPECT_EQ(shell_word("a b"), "'a b'");
  EXPECT_EQ(shell_word("it's"), "'it'\\''s'");
  EXPECT_EQ(shell_word("$x;"), "'$x;'");
  EXPECT_EQ(shell_word(""), "''");
}

}  // namespace
}  // namespace memphis
