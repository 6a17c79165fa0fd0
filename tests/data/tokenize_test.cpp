// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/tokenize.h"

#include <cstdlib>
#include <functional>
#include <memory>
#include <sstream>

#include <gtest/gtest.h>
#include <omp.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/data/corpus.h"
#include "csrc/data/dataset.h"
#include "csrc/data/dataset_preparation.h"
#include "csrc/data/encoded_text.h"
#include "csrc/data/file_records.h"
#include "csrc/data/megatron_stream.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr const char* kBytePairs = "tests/data/golden/gpt2.json";

std::string lines_of(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += R"({"id": )" + std::to_string(i) + R"(, "text": "document )" +
            std::string(static_cast<std::size_t>(i % 97), 'x') + R"( \u00e9\n"})" + "\n";
  }
  return text;
}

class Tokenize : public ::testing::Test {
 protected:
  std::string at(const std::string& name) const { return (directory_.path() / name).string(); }

  void shell(const std::string& command) const {
    ASSERT_EQ(std::system(("cd '" + directory_.path().string() + "' && " + command).c_str()), 0)
        << command;
  }

  TokenizeJob::Counts run(const std::vector<CorpusFile>& files,
                          const std::string& prefix,
                          const TokenizeOptions& options = {},
                          const std::string& tokenizer = kBytePairs) const {
    TokenizeJob job(files, open_tokenizer(tokenizer), options, at(prefix));
    while (job.step()) {
    }
    return job.counts();
  }

  static std::string both(const std::string& prefix) {
    return read_text(prefix + ".bin") + read_text(prefix + ".idx");
  }

  test::TemporaryDirectory directory_;
};

TEST_F(Tokenize, TheFilesAreTheSameForAnyNumberOfThreadsAndAnyPacking) {
  const std::string file = directory_.write("a.jsonl", lines_of(5000));
  shell(
      "gzip -k a.jsonl && head -n 2000 a.jsonl | gzip > b.gz && tail -n +2001 a.jsonl | gzip >> "
      "b.gz");
  std::vector<CorpusFile> files = {
      {.path = file, .packing = Packing::none, .framing = Framing::lines}};
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  run(files, "one");
  omp_set_num_threads(3);
  TokenizeOptions small;
  small.batch_bytes = 10'000;
  const TokenizeJob::Counts counts = run(files, "three", small);
  omp_set_num_threads(threads);
  EXPECT_EQ(both(at("one")), both(at("three")));
  EXPECT_EQ(counts.documents, 5000U);
  for (const char* packed : {"a.jsonl.gz", "b.gz"}) {
    files = {{.path = at(packed), .packing = Packing::gzip, .framing = Framing::lines}};
    run(files, std::string(packed) + "-out");
    EXPECT_EQ(both(at("one")), both(at(std::string(packed) + "-out"))) << "one member or two";
  }
}

// The most that `zstd --long` writes; a frame asks for it in six bytes, however little it holds.
TEST_F(Tokenize, AFrameOfZstdMayHaveAWindowOfTwoGibibytes) {
  const std::string lines = lines_of(20);
  run({{.path = directory_.write("plain.jsonl", lines),
        .packing = Packing::none,
        .framing = Framing::lines}},
      "plain");
  const auto last_raw_block = static_cast<std::uint32_t>(lines.size()) << 3U | 1U;
  std::string frame("\x28\xB5\x2F\xFD\0\xA8", 6);
  for (unsigned shift = 0; shift < 24; shift += 8) {
    frame += static_cast<char>(last_raw_block >> shift & 0xFFU);
  }
  run({{.path = directory_.write("long.zst", frame + lines),
        .packing = Packing::zstd,
        .framing = Framing::lines}},
      "long");
  EXPECT_EQ(both(at("plain")), both(at("long")));
}

TEST_F(Tokenize, ADatasetIsTheDocumentsIds) {
  const std::string file = directory_.write("a.jsonl",
                                            R"({"text": "Hello, world!"})"
                                            "\n\n"
                                            R"({"text": ""})"
                                            "\n"
                                            R"({"text": "naïve"})");
  const TokenizeJob::Counts counts =
      run({{.path = file, .packing = Packing::none, .framing = Framing::lines}}, "out");
  EXPECT_EQ(counts.documents, 2U);
  EXPECT_EQ(counts.empty_documents, 1U);
  EXPECT_EQ(counts.blank_lines, 1U);
  const auto tokenizer = open_tokenizer(kBytePairs);
  std::vector<std::int32_t> expected = tokenizer->encode("Hello, world!");
  expected.push_back(0);
  const std::size_t first = expected.size();
  tokenizer->append("naïve", expected);
  expected.push_back(0);
  FileRecords records;
  const auto stream = open_megatron(at("out.idx"), 600, records);
  std::vector<std::int32_t> tokens(stream->num_tokens());
  std::vector<std::int32_t> position(stream->num_tokens());
  stream->read(0, tokens, position);
  EXPECT_EQ(tokens, expected);
  EXPECT_EQ(position[first], 0);
  EXPECT_EQ(position[first - 1], static_cast<std::int32_t>(first) - 1);
}

TEST_F(Tokenize, PromptsAreReadAndNotLearnt) {
  const std::string file = directory_.write("a.jsonl",
                                            R"({"q": "2 + 2 = ", "a": "4", "text": "no"})"
                                            "\n"
                                            R"({"q": "x", "a": "yz"})"
                                            "\n");
  TokenizeOptions options;
  options.prompt_field = "q";
  options.response_field = "a";
  run({{.path = file, .packing = Packing::none, .framing = Framing::lines}},
      "out",
      options,
      "byte");
  FileRecords records;
  const auto stream = open_megatron(at("out.bin"), 259, records);
  ASSERT_TRUE(stream->has_mask());
  ASSERT_EQ(stream->num_tokens(), 16U);  // bos, 8 and 1 bytes, eos; bos, 1 and 2, eos
  std::vector<std::uint8_t> learnt(16);
  stream->read_mask(0, learnt);
  EXPECT_EQ(learnt, (std::vector<std::uint8_t>{0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1}));
  // Text beside it that is no lines of JSON has no prompts: all of it is learnt.
  const std::string text = directory_.write("a.txt", "abc");
  run({{.path = text}}, "plain", options, "byte");
  const auto plain = open_megatron(at("plain.bin"), 259, records);
  ASSERT_EQ(plain->num_tokens(), 5U);
  learnt.assign(5, 0);
  plain->read_mask(0, learnt);
  EXPECT_EQ(learnt, (std::vector<std::uint8_t>{0, 1, 1, 1, 1}));
}

TEST_F(Tokenize, AStoppedJobGoesOnAndEndsWithTheSameFiles) {
  const std::string plain = directory_.write("a.jsonl", lines_of(3000));
  shell("gzip -k a.jsonl");
  const std::vector<CorpusFile> files = {
      {.path = plain, .packing = Packing::none, .framing = Framing::lines},
      {.path = at("a.jsonl.gz"), .packing = Packing::gzip, .framing = Framing::lines}};
  TokenizeOptions options;
  options.batch_bytes = 5000;
  options.noted_bytes = 20'000;
  options.prompt_field = "text";
  options.response_field = "text";
  run(files, "whole", options, "byte");
  const auto tokenizer = open_tokenizer("byte");
  std::uint64_t resumed = 0;
  int rounds = 0;
  for (bool more = true; more; ++rounds) {
    TokenizeJob job(files, tokenizer, options, at("parts"));
    EXPECT_GE(job.resumed_at(), resumed) << "what was noted is not done again";
    resumed = job.resumed_at();
    for (int step = 0; step < 17 && more; ++step) {
      more = job.step();
    }
    ASSERT_LT(rounds, 100) << "it gets on";
  }
  EXPECT_GT(rounds, 4);
  EXPECT_EQ(both(at("parts")), both(at("whole")));
  EXPECT_EQ(read_text(at("parts.mask")), read_text(at("whole.mask")));
  EXPECT_FALSE(fs::exists(at("parts.journal.partial")));
  EXPECT_EQ(read_text(at("parts.meta.json")), read_text(at("whole.meta.json")));
  // One that is killed while it puts its files in place knows them again.
  const std::string fingerprint = TokenizeJob::fingerprint(files, *tokenizer, options);
  fs::remove(at("parts.idx"));
  EXPECT_FALSE(TokenizeJob::is_done(at("parts"), fingerprint));
  EXPECT_TRUE(TokenizeJob::is_begun(at("parts"), fingerprint));
  run(files, "parts", options, "byte");
  EXPECT_TRUE(TokenizeJob::is_done(at("parts"), fingerprint));
  EXPECT_EQ(both(at("parts")), both(at("whole")));
  // What was noted of other options counts for nothing.
  {
    TokenizeJob job(files, tokenizer, options, at("other"));
    for (int step = 0; step < 17; ++step) {
      job.step();
    }
  }
  options.eos = false;
  run(files, "other", options, "byte");
  run(files, "fresh", options, "byte");
  EXPECT_EQ(both(at("other")), both(at("fresh")));
}

TEST_F(Tokenize, TwoProcessesDoNotWriteTheSameFiles) {
  const std::string file = directory_.write("a.txt", "text");
  const std::vector<CorpusFile> files = {{.path = file}};
  const TokenizeJob first(files, open_tokenizer("byte"), {}, at("out"));
  const std::string text = test::error_text<PreflightError>(
      [&] { const TokenizeJob second(files, open_tokenizer("byte"), {}, at("out")); });
  EXPECT_NE(text.find("another process"), std::string::npos) << text;
}

// What users have lying about, and what each is told.
TEST_F(Tokenize, BadInputIsNamedWithFileAndPlace) {
  const auto jsonl = [](const std::string& name) {
    return CorpusFile{.path = name, .packing = Packing::none, .framing = Framing::lines};
  };
  directory_.write("fine.jsonl", lines_of(300));
  shell(
      "gzip -k fine.jsonl && head -c 900 fine.jsonl.gz > cut.gz && (head -c 400 fine.jsonl.gz; "
      "printf "
      "'\\0\\1\\2\\3\\4\\5\\6\\7'; tail -c +409 fine.jsonl.gz) > damaged.gz && (cat fine.jsonl.gz; "
      "echo x) > "
      "behind.gz && printf '\\050\\265\\057\\375\\044\\200\\001' > cut.zst && printf "
      "'\\050\\265\\057\\375\\010\\0\\0\\0\\0\\0\\0\\0\\0\\0' > damaged.zst && printf "
      "'\\050\\265\\057\\375\\0\\250\\21\\0\\0' > cut_2gib.zst && printf "
      "'\\050\\265\\057\\375\\0\\260\\1\\0\\0' > empty_4gib.zst && mkdir folder");
  struct Case {
    std::string content;  // of a file of lines; empty: `file`
    std::string expected;
    CorpusFile file = {};
  };
  const std::vector<Case> cases = {
      {"{\"text\": \"a\"}\nnot JSON\n", "a.jsonl, line 2, byte 14 is not JSON"},
      {"{\"text\": \"a\"}\n{\"text\": \"b\"\n", "line 2, byte 14 is not JSON"},
      {"{\"text\": \"a\xFF\"}\n", "line 1, byte 0 is not JSON"},
      {"{\"text\": \"a\\ud800\"}\n", "line 1, byte 0 is not JSON"},
      {std::string("{\"text\": \"a\0\"}\n", 14), "line 1, byte 0 is not JSON"},
      {"[1, 2]\n", "is no object but array"},
      {"\"text\"\n", "is no object but string"},
      {"7\n", "is no object but number"},
      {"null\n", "is no object but null"},
      {"{\"body\": \"a\", \"id\": 1}\n",
       "has no field text (its fields are body, id); set data.field"},
      {"{}\n", "has no field text (its fields are none)"},
      {"{\"text\": null}\n", "has a field text that is no string but null"},
      {"{\"text\": [\"a\"]}\n", "no string but array"},
      {"{\"text\": 5}\n", "no string but number"},
      {"{\"text\": \"a\"}\n{\"text\": {}}\n", "line 2, byte 14 has a field text"},
      {"{\"text\": \"" + std::string(3000, 'a') + "\"}\n",
       "a line of more than 2000 bytes, from byte 0"},
      {"{\"text\": \"a\"}\n" + std::string(2001, ' '), "from byte 14 of its text on, line 2"},
      {"", "its gzip data break off at byte 900", {at("cut.gz"), Packing::gzip, Framing::lines}},
      {"",
       "its gzip data are damaged before byte",
       {at("damaged.gz"), Packing::gzip, Framing::lines}},
      {"",
       "its gzip data are damaged before byte",
       {at("behind.gz"), Packing::gzip, Framing::lines}},
      {"", "its zstd data break off at byte 7", {at("cut.zst"), Packing::zstd, Framing::lines}},
      {"",
       "its zstd data are damaged before byte",
       {at("damaged.zst"), Packing::zstd, Framing::lines}},
      {"",
       "its zstd data break off at byte 9",
       {at("cut_2gib.zst"), Packing::zstd, Framing::lines}},
      {"", "Frame requires too much memory", {at("empty_4gib.zst"), Packing::zstd, Framing::lines}},
      {"", "No such file", {at("absent.jsonl"), Packing::none, Framing::lines}},
      {"", "folder", {at("folder"), Packing::none, Framing::lines}},
      {"", "a document of more than 2000 bytes", {at("fine.jsonl"), Packing::none, Framing::whole}},
      {"", "has a NUL byte at 2", {directory_.write("nul.txt", std::string("ab\0c", 4))}}};
  TokenizeOptions options;
  options.max_document_bytes = 2000;
  for (const Case& each : cases) {
    const CorpusFile file =
        each.content.empty() ? each.file : jsonl(directory_.write("a.jsonl", each.content));
    const std::string text = test::error_text<DataError>([&] { run({file}, "out", options); });
    EXPECT_NE(text.find(each.expected), std::string::npos)
        << text << "\nexpected: " << each.expected;
    EXPECT_TRUE(test::follows_grammar(text)) << text;
  }
}

// Fields are options of a command and keys of a config.
TEST_F(Tokenize, AFieldThatIsNotThereIsAskedForInTheUsersWords) {
  const std::string path = directory_.write("a.jsonl", R"({"body": "a", "question": "b"})");
  const auto told = [&](TokenizeOptions options) {
    return test::error_text<DataError>([&] {
      run({{.path = path, .packing = Packing::none, .framing = Framing::lines}}, "out", options);
    });
  };
  TokenizeOptions of_prompts;
  of_prompts.prompt_field = "question";
  of_prompts.response_field = "answer";
  for (TokenizeOptions options : {TokenizeOptions{}, of_prompts}) {
    const std::string field = options.prompt_field.empty() ? "field" : "response_field";
    EXPECT_NE(told(options).find("; set data." + field + " to"), std::string::npos);
    options.named_as_options = true;
    const std::string text = told(options);
    EXPECT_NE(text.find(field == "field" ? "; set --field to" : "; set --response-field to"),
              std::string::npos)
        << text;
  }
}

// What is a tokenizer's most is known before any of it is read.
TEST_F(Tokenize, ATextThatIsTooLargeIsRefusedUnread) {
  const std::string path = directory_.write("large.txt", "x");
  fs::resize_file(path, EncodedText::kMaxBytes + 1);  // of which the disk has a block
  const auto tokenizer = open_tokenizer(kBytePairs);
  for (const std::function<void()>& read :
       std::vector<std::function<void()>>{[&] { const EncodedText text(path, *tokenizer); },
                                          [&] { run({{.path = path}}, "out"); }}) {
    const std::string text = test::error_text<DataError>(read);
    EXPECT_NE(text.find("a document of more than 268435456 bytes"), std::string::npos) << text;
    EXPECT_TRUE(test::follows_grammar(text)) << text;
  }
  // To the byte, packed or not.
  directory_.write("ten.txt", "0123456789");
  shell("gzip -k ten.txt");
  for (const CorpusFile& file : {CorpusFile{.path = at("ten.txt")},
                                 CorpusFile{.path = at("ten.txt.gz"), .packing = Packing::gzip}}) {
    std::string document;
    EXPECT_TRUE(DocumentReader(file, 10).next(document));
    EXPECT_EQ(document, "0123456789");
    EXPECT_THROW(DocumentReader(file, 9).next(document), DataError);
  }
}

TEST_F(Tokenize, AFileThatChangesWhileItIsReadIsNamed) {
  const std::string line = "{\"text\": \"" + std::string(1000, 'a') + "\"}\n";
  std::string lines;
  for (int i = 0; i < 1000; ++i) {
    lines += line;
  }
  const auto read_all = [&](const std::function<void(const std::string&)>& change) {
    const std::string path = directory_.write("a.jsonl", lines);
    return test::error_text<DataError>([&] {
      DocumentReader reader({.path = path, .packing = Packing::none, .framing = Framing::lines},
                            10'000);
      std::string document;
      ASSERT_TRUE(reader.next(document));
      change(path);
      while (reader.next(document)) {
      }
    });
  };
  const std::string grown =
      read_all([](const std::string& path) { fs::resize_file(path, fs::file_size(path) + 1); });
  EXPECT_NE(grown.find("has changed while it was read"), std::string::npos) << grown;
  const std::string cut = read_all([](const std::string& path) { fs::resize_file(path, 600'000); });
  EXPECT_NE(cut.find("a.jsonl"), std::string::npos) << cut;
  EXPECT_TRUE(test::follows_grammar(cut)) << cut;
}

TEST_F(Tokenize, ALargeTextIsReadWholeOnceAndNotAtEveryStart) {
  std::string text(std::size_t{2} << 20U, 'a');
  const std::string file = directory_.write("a.txt", text);
  DataConfig config;
  config.train = {file};
  config.held_out = 0;
  const std::string first = open_dataset(config, 8, {}, at("run")).fingerprint;
  const auto time = fs::last_write_time(file);
  text.back() = 'b';
  directory_.write("a.txt", text);
  EXPECT_NE(open_dataset(config, 8, {}, at("run")).fingerprint, first) << "it was written to";
  fs::last_write_time(file, time);
  EXPECT_EQ(open_dataset(config, 8, {}, at("run")).fingerprint, first)
      << "of its size and time it is the file that was read";
}

// What is unusual and no fault reads as it is meant.
TEST_F(Tokenize, UnusualInputReads) {
  struct Case {
    std::string content;
    std::uint64_t documents;
    std::uint64_t text_bytes;
    std::uint64_t blank;
    std::uint64_t empty;
  };
  const std::vector<Case> cases = {
      {"{\"text\": \"ab\"}", 1, 2, 0, 0},                           // no last line end
      {"\xEF\xBB\xBF{\"text\": \"ab\"}\n", 1, 2, 0, 0},             // a mark of UTF-8
      {"{\"text\": \"ab\"}\r\n{\"text\": \"c\"}\r\n", 2, 3, 0, 0},  // CRLF
      {"\n \n\r\n{\"text\": \"ab\"}\n\n", 1, 2, 4, 0},              // blank lines
      {"{\"text\": \"\"}\n{\"text\": \"a\"}\n", 1, 1, 0, 1},        // an empty document
      {"{\"text\": \"a\\u0000b\"}\n", 1, 3, 0, 0},                  // NUL, escaped
      {"{\"text\": \"a\", \"text\": \"bcd\"}\n", 1, 3, 0, 0},       // the last, as in Python
      {"{\"text\": \"\\ud83d\\ude00\"}\n", 1, 4, 0, 0}};            // a pair of surrogates
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Case& each = cases[i];
    const std::string path = directory_.write("a" + std::to_string(i) + ".jsonl", each.content);
    const TokenizeJob::Counts counts =
        run({{.path = path, .packing = Packing::none, .framing = Framing::lines}},
            "out" + std::to_string(i));
    EXPECT_EQ(counts.documents, each.documents) << each.content;
    EXPECT_EQ(counts.text_bytes, each.text_bytes) << each.content;
    EXPECT_EQ(counts.blank_lines, each.blank) << each.content;
    EXPECT_EQ(counts.empty_documents, each.empty) << each.content;
  }
  const std::string latin = directory_.write("latin.txt", "caf\xE9 th\xE9");
  EXPECT_EQ(run({{.path = latin}}, "latin").replaced, 2U) << "what is not UTF-8 is counted";
}

// What stands beside tokens may be anybody's: a member of another type is one that is missing.
TEST_F(Tokenize, NotesOfOtherTypesAreNone) {
  const std::vector<CorpusFile> files = {{.path = directory_.write("a.txt", "some text")}};
  const TokenizeJob::Counts counts = run(files, "out");
  const std::string bytes = both(at("out"));
  const std::string fingerprint = TokenizeJob::fingerprint(files, *open_tokenizer(kBytePairs), {});
  directory_.write("out.meta.json",
                   R"({"fingerprint": ")" + fingerprint +
                       R"(", "tokens": "x", "documents": -1, "replaced": []})");
  EXPECT_EQ(run(files, "out").tokens, 0U) << "is done, and what it counted is not known";
  for (const char* meta : {R"({"fingerprint": 1, "tokenizer": 5})", "[]", "5", ""}) {
    directory_.write("out.meta.json", meta);
    EXPECT_FALSE(TokenizeJob::is_done(at("out"), fingerprint));
    EXPECT_EQ(run(files, "out").tokens, counts.tokens) << meta;
    EXPECT_EQ(both(at("out")), bytes) << meta;
  }
  directory_.write("out.meta.json", R"({"tokenizer": 5, "tokenizer_kind": 5})");
  DataConfig config;
  config.train = {at("out.bin")};
  config.held_out = 0;
  config.tokenizer = kBytePairs;
  EXPECT_NO_THROW(open_dataset(config, 1, {}, {}, {.vocab_size = 100'000}));
}

// What a run is given: each case is the entries of data.train and what a user is told of them.
TEST_F(Tokenize, BadDataOfARunIsNamed) {
  directory_.write("e/empty.txt", "");
  directory_.write("e/empty.jsonl", "");
  directory_.write("blank.jsonl", "\n\n");
  directory_.write("text.jsonl", "{\"text\": \"abcdefgh\"}\n{\"body\": \"x\"}\n");
  directory_.write("records.json", "[{\"text\": \"a\"}, {\"text\": \"b\"}]");
  directory_.write("lone.idx", std::string("MMIDIDX\0\0", 9));
  directory_.write("cut.bin", std::string("\x88\xD8\x34\x01\1\0\0\0", 8) + std::string(2000, '\0'));
  directory_.write("packed.txt", "text");
  shell(
      "gzip -c packed.txt > inner && gzip -c inner > twice.gz && ln -s loop loop && mkdir deep && "
      "ln -s . "
      "deep/again && mkfifo pipe && tar cf - packed.txt | gzip > tree.tar.gz");
  struct Case {
    std::string entry;
    std::string expected;
  };
  const std::vector<Case> cases = {{"e/empty.txt", "it is empty"},
                                   {"e/empty.jsonl", "it is empty"},
                                   {"e", "holds 0 of the 9 tokens"},
                                   {"blank.jsonl", "holds 0 of the 9 tokens"},
                                   {"text.jsonl", "line 2, byte 21 has no field text"},
                                   {"records.json", "JSON records"},
                                   {"lone.idx", "lone.bin is not beside it"},
                                   {"cut.bin", "as its header says"},
                                   {"twice.gz", "gzip-compressed data"},
                                   {"tree.tar.gz", "gzip-compressed data"},
                                   {"loop", "loop"},
                                   {"deep", "holds 0 of the 9 tokens"},
                                   {"pipe", "pipe"},
                                   {"absent*", "absent"}};
  for (const Case& each : cases) {
    DataConfig config;
    config.train = {at(each.entry)};
    config.held_out = 0;
    const std::string text =
        test::error_text<DataError>([&] { open_dataset(config, 8, {}, at("run")); });
    EXPECT_NE(text.find(each.expected), std::string::npos)
        << text << "\nexpected: " << each.expected;
    EXPECT_TRUE(test::follows_grammar(text)) << text;
  }
  if (::geteuid() != 0) {  // root may read all
    const std::string secret = directory_.write("secret.txt", "text");
    fs::permissions(secret, fs::perms::none);
    DataConfig config;
    config.train = {secret};
    const std::string text =
        test::error_text<DataError>([&] { open_dataset(config, 8, {}, at("run")); });
    EXPECT_NE(text.find("ermission"), std::string::npos) << text;
  }
}

// Lines of JSON with a fault among the first are not trained on with their brackets.
TEST_F(Tokenize, AFaultInTheFirstLinesIsNamedWithLineAndByte) {
  const std::string line = "{\"text\": \"abcdefgh\"}\n";
  struct Case {
    std::string name;
    std::string content;
    std::string place;
    std::string field = "text";
  };
  const std::vector<Case> cases = {
      {"a.jsonl", "{\"text\": \"abc}\n" + line, "a.jsonl, line 1, byte 0 is not JSON"},
      {"a.ndjson", line + "{\"text\": \n" + line, "a.ndjson, line 2, byte 21 is not JSON"},
      {"a.jsonl", "{\"text\": \"caf\xE9\"}\n" + line, "line 1, byte 0 is not JSON"},
      {"a.jsonl", "// by hand\n" + line, "line 1, byte 0 is not JSON"},
      {"a.txt", line + "{\"text\": \n" + line, "a.txt, line 2, byte 21 is not JSON"},
      {"a.txt", "{\"body\": \"abc}\n{\"body\": \"d\"}\n", "line 1, byte 0 is not JSON", "body"}};
  for (const Case& each : cases) {
    const std::string path = directory_.write(each.name, each.content);
    for (const bool packed : {false, true}) {
      if (packed) {
        shell("gzip -kf " + each.name);
      }
      for (const char* tokenizer : {"byte", kBytePairs}) {
        DataConfig config;
        config.train = {packed ? path + ".gz" : path};
        config.tokenizer = tokenizer;
        config.field = each.field;
        config.held_out = 0;
        const std::string text = test::error_text<DataError>(
            [&] { open_dataset(config, 2, {}, at("run"), {.vocab_size = 1000, .pad_id = -1}); });
        EXPECT_NE(text.find(packed && each.place[0] == 'a' ? each.place.substr(each.place.find(','))
                                                           : each.place),
                  std::string::npos)
            << text << "\nexpected: " << each.place;
      }
    }
  }
  // In a folder such a file is a corpus if any of its lines has the text.
  directory_.write("folder/a.jsonl", "{\"text\": \"abc}\n" + line);
  directory_.write("other/notes.jsonl", "{\"note\": \n{\"note\": 1}\n");
  directory_.write("other/a.txt", std::string(100, 'a'));
  DataConfig config;
  config.held_out = 0;
  config.train = {at("folder")};
  const std::string text =
      test::error_text<DataError>([&] { open_dataset(config, 2, {}, at("run")); });
  EXPECT_NE(text.find("line 1, byte 0 is not JSON"), std::string::npos) << text;
  config.train = {at("other")};
  EXPECT_EQ(open_dataset(config, 2, {}, at("run")).sources[0].stream->num_tokens(), 102U);
}

// The command's own field tells which lines of a folder are a corpus.
TEST_F(Tokenize, ACorpusOfAFolderHasTheFieldThatIsAskedFor) {
  directory_.write("folder/a.jsonl", "{\"body\": \"abc\"}\n");
  directory_.write("folder/b.jsonl", "{\"text\": \"abc\"}\n");
  TokenizeOptions options;
  options.field = "body";
  const std::vector<CorpusFile> files = list_corpus({at("folder")}, options);
  ASSERT_EQ(files.size(), 1U);
  EXPECT_EQ(files[0].path.filename(), "a.jsonl");
}

TEST_F(Tokenize, ARunTokenizesOnceAndReadsWhatEveryFormatHolds) {
  directory_.write("corpus/a.txt", std::string(100, 'a'));
  directory_.write("corpus/b.jsonl", "{\"text\": \"" + std::string(50, 'b') + "\"}\n");
  directory_.write("corpus/notes.jsonl", "{\"note\": 1}\n");
  shell("gzip -c corpus/b.jsonl > corpus/c.gz && gzip -c corpus/a.txt > corpus/d.gz");
  run({{.path = at("corpus/a.txt")}}, "corpus/tokens", {}, "byte");
  DataConfig config;
  config.train = {at("corpus")};
  config.held_out = 0;
  const Dataset first = open_dataset(config, 8, {}, at("run"));
  EXPECT_EQ(first.sources[0].stream->num_tokens(), 102U + 52 + 52 + 102 + 102);
  const auto written = [&] {
    std::vector<fs::file_time_type> times;
    for (const auto& entry : fs::directory_iterator(at("run/tokens"))) {
      times.push_back(entry.last_write_time());
    }
    return times;
  };
  const auto before = written();
  EXPECT_EQ(open_dataset(config, 8, {}, at("run")).fingerprint, first.fingerprint);
  EXPECT_EQ(written(), before) << "the second start writes nothing";
  EXPECT_EQ(open_dataset(config, 8, {}, at("other")).fingerprint, first.fingerprint);
}

// What a run keeps of its text it can make again, and says so; it is not trained on, nor taken for
// another text.
TEST_F(Tokenize, DamagedTokensOfARunAreMadeAgain) {
  directory_.write("a.jsonl", lines_of(3000));
  DataConfig config;
  config.train = {at("a.jsonl")};
  config.tokenizer = kBytePairs;
  config.held_out = 0;
  const DatasetOptions fitting{.vocab_size = 600, .pad_id = -1};
  const auto open = [&] { return open_dataset(config, 8, {}, at("run"), fitting).fingerprint; };
  const auto prepare = [&] {
    DatasetPreparation preparation(config, {}, at("run"));
    int rounds = 0;
    do {
      ++rounds;
      while (preparation.advance(1)) {
      }
      IdScan scan(preparation.unread_ids(600), 600);
      scan.take(0, scan.num_chunks());
      while (scan.advance(1)) {
      }
      preparation.keep(scan, scan.result());
    } while (rounds < 3 && preparation.discard_damaged());
    return rounds;
  };
  const std::string fingerprint = open();
  const std::string tokens = [&] {
    for (const auto& entry : fs::directory_iterator(at("run/tokens"))) {
      if (entry.path().extension() == ".bin") {
        return fs::path(entry.path()).replace_extension().string();
      }
    }
    return std::string();
  }();
  const std::string whole = both(tokens);
  EXPECT_EQ(prepare(), 1);
  const std::vector<std::string> damages = {
      "printf '\\1\\0' | dd of=T.bin bs=1 seek=2000 conv=notrunc status=none",
      "printf '\\377\\377' | dd of=T.bin bs=1 seek=2000 conv=notrunc status=none",
      "truncate -s -2 T.bin",
      "truncate -s -1 T.bin",
      "truncate -s 0 T.bin",
      "printf 'XX' | dd of=T.idx bs=1 seek=2000 conv=notrunc status=none",
      "printf 'XX' | dd of=T.idx bs=1 seek=9 conv=notrunc status=none",
      "truncate -s 20 T.idx"};
  for (const std::string& damage : damages) {
    for (const bool in_pieces : {false, true}) {
      std::string command = damage;
      command.replace(command.find("T."), 1, tokens);
      shell(command);
      ASSERT_NE(both(tokens), whole) << damage;
      std::ostringstream said;
      spdlog::default_logger()->sinks().push_back(
          std::make_shared<spdlog::sinks::ostream_sink_mt>(said));
      if (in_pieces) {
        EXPECT_LE(prepare(), 2) << damage;
      }
      EXPECT_EQ(open(), fingerprint) << damage;
      spdlog::default_logger()->sinks().pop_back();
      EXPECT_NE(said.str().find("are damaged, and are made again from the text"), std::string::npos)
          << damage << said.str();
      EXPECT_EQ(both(tokens), whole) << damage;
      EXPECT_EQ(prepare(), 1) << damage;
    }
  }
}

TEST_F(Tokenize, WhatDoesNotFitTheModelOrTheTokenizerIsRefused) {
  const std::string file = directory_.write("a.txt", std::string(1000, 'a'));
  DataConfig config;
  config.train = {file};
  config.held_out = 0;
  config.tokenizer = kBytePairs;
  const auto problem = [&](const DatasetOptions& options) {
    return test::error_text<ConfigError>([&] { open_dataset(config, 8, {}, at("run"), options); });
  };
  EXPECT_NE(problem({.vocab_size = 599, .pad_id = -1}).find("use at least 600"), std::string::npos);
  EXPECT_NE(problem({.vocab_size = 600, .pad_id = 5}).find("set model.pad_id to -1"),
            std::string::npos);
  EXPECT_NO_THROW(open_dataset(config, 8, {}, at("run"), {.vocab_size = 600, .pad_id = -1}));
  config.tokenizer = "none";
  EXPECT_NE(problem({}).find("data.tokenizer is none"), std::string::npos);
  run({{.path = file}}, "made", {}, kBytePairs);
  config.train = {at("made.bin")};
  EXPECT_NO_THROW(open_dataset(config, 8, {}, at("run"), {.vocab_size = 600, .pad_id = -1}));
  config.tokenizer = "tests/data/golden/o200k.json";
  const std::string other = test::error_text<DataError>(
      [&] { open_dataset(config, 8, {}, at("run"), {.vocab_size = 600, .pad_id = -1}); });
  EXPECT_NE(other.find("another tokenizer"), std::string::npos) << other;
}

TEST_F(Tokenize, AMixtureHoldsOutTheEndOfEachSource) {
  const std::string a = directory_.write("a.txt", std::string(98, 'a'));
  const std::string b = directory_.write("b.txt", std::string(198, 'b'));
  DataConfig config;
  config.train = {a, b};
  config.mixture = {{.weight = 3, .name = {}}, {.weight = 1, .name = "other"}};
  config.held_out = 0.5;
  const Dataset dataset = open_dataset(config, 8, {}, at("run"));
  ASSERT_EQ(dataset.sources.size(), 2U);
  EXPECT_EQ(dataset.sources[0].name, "a");
  EXPECT_EQ(dataset.sources[1].name, "other");
  ASSERT_EQ(dataset.validation.size(), 2U);
  EXPECT_EQ(dataset.validation[1].name, "other");
  EXPECT_EQ(dataset.validation[1].range.begin, 100U);
  // Of eight samples six are of one letter, in an order that begins anywhere alike.
  const MixtureLoader loader(dataset.sources, 8, 3);
  std::vector<std::int32_t> tokens(8);
  std::vector<std::int32_t> targets(8);
  std::vector<std::int32_t> position(8);
  for (const std::uint64_t begin : {0U, 5U, 1001U}) {
    int of_a = 0;
    for (std::uint64_t i = begin; i < begin + 8; ++i) {
      loader.sample(i, {tokens, targets, position});
      of_a += tokens[4] == 'a' + 3 ? 1 : 0;
    }
    EXPECT_EQ(of_a, 6) << begin;
  }
  config.mixture[0].weight = 1;
  EXPECT_NE(open_dataset(config, 8, {}, at("run")).fingerprint, dataset.fingerprint);
}

}  // namespace
}  // namespace memphis
