// SPDX-License-Identifier: Apache-2.0

#include <cstring>
#include <functional>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/data/id_scan.h"
#include "csrc/data/joined_stream.h"
#include "csrc/data/loader.h"
#include "csrc/data/megatron_stream.h"
#include "csrc/data/token_file_stream.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

template <class T>
std::string packed(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class T>
std::string packed(T value) {
  return packed(std::vector<T>{value});
}

// Written out from the description of the format.
std::string megatron_index(std::uint8_t code,
                           std::int64_t item,
                           const std::vector<std::int32_t>& lengths,
                           const std::vector<std::int64_t>& boundaries) {
  std::vector<std::int64_t> pointers;
  std::int64_t pointer = 0;
  for (const std::int32_t length : lengths) {
    pointers.push_back(pointer);
    pointer += length * item;
  }
  return std::string("MMIDIDX\0\0", 9) + packed(std::uint64_t{1}) + packed(code) +
         packed(std::uint64_t{lengths.size()}) + packed(std::uint64_t{boundaries.size()}) +
         packed(lengths) + packed(pointers) + packed(boundaries);
}

struct Read {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> position;
};

Read read_all(const TokenStream& stream) {
  Read all{std::vector<std::int32_t>(stream.num_tokens()),
           std::vector<std::int32_t>(stream.num_tokens())};
  stream.read(0, all.tokens, all.position);
  // Any part reads as the whole does.
  for (std::size_t begin = 0; begin <= all.tokens.size(); ++begin) {
    for (std::size_t end = begin; end <= all.tokens.size(); ++end) {
      Read part{std::vector<std::int32_t>(end - begin), std::vector<std::int32_t>(end - begin)};
      stream.read(begin, part.tokens, part.position);
      for (std::size_t i = begin; i < end; ++i) {
        EXPECT_EQ(part.tokens[i - begin], all.tokens[i]);
        // Without an index it may not be known how far a document goes back.
        if (part.position[i - begin] != TokenStream::kFarPosition) {
          const bool follows_far = part.position[i - begin] > 1'000'000;
          EXPECT_TRUE(follows_far || part.position[i - begin] == all.position[i])
              << begin << " " << i;
        }
      }
    }
  }
  return all;
}

class TokenFiles : public ::testing::Test {
 protected:
  std::string write_pair(const std::string& tokens, const std::string& index) {
    directory_.write("a.bin", tokens);
    return directory_.write("a.idx", index);
  }

  std::string problem(const std::function<void()>& body) {
    const std::string text = test::error_text<DataError>(body);
    EXPECT_TRUE(test::follows_grammar(text)) << text;
    return text;
  }

  test::TemporaryDirectory directory_;
  FileRecords records_;
};

TEST_F(TokenFiles, EveryTypeOfMegatronReads) {
  const std::vector<std::int32_t> ids = {5, 6, 7, 100, 2, 3, 4};
  const auto as = [&](auto one) {
    std::vector<decltype(one)> values;
    for (const std::int32_t id : ids) {
      values.push_back(static_cast<decltype(one)>(id));
    }
    return std::pair{packed(values), static_cast<std::int64_t>(sizeof(one))};
  };
  const std::vector<std::pair<std::string, std::int64_t>> types = {as(std::uint8_t{}),
                                                                   as(std::int8_t{}),
                                                                   as(std::int16_t{}),
                                                                   as(std::int32_t{}),
                                                                   as(std::int64_t{}),
                                                                   as(double{}),
                                                                   as(float{}),
                                                                   as(std::uint16_t{})};
  for (std::size_t code = 1; code <= types.size(); ++code) {
    const auto& [bytes, item] = types[code - 1];
    // Three sequences, of which the last two are one document; an empty one; and one of its own.
    const std::string index = write_pair(
        bytes,
        megatron_index(static_cast<std::uint8_t>(code), item, {2, 1, 2, 2}, {0, 1, 3, 3, 4}));
    const auto stream = open_megatron(index, 128, records_);
    const Read all = read_all(*stream);
    EXPECT_EQ(all.tokens, ids) << code;
    EXPECT_EQ(all.position, (std::vector<std::int32_t>{0, 1, 0, 1, 2, 0, 1})) << code;
    EXPECT_FALSE(stream->has_mask());
  }
}

TEST_F(TokenFiles, AMegatronDatasetIsCheckedBeforeItIsRead) {
  const std::string tokens = packed(std::vector<std::uint16_t>{5, 6, 7, 8, 9});
  const std::string index = megatron_index(8, 2, {2, 3}, {0, 1, 2});
  const auto changed = [&](std::size_t at, const std::string& bytes) {
    std::string copy = index;
    return copy.replace(at, bytes.size(), bytes);
  };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {index.substr(0, 20), "it has 20 bytes, and the header of an index has 34"},
      {index.substr(0, 50), "names 2 sequences and 3 boundaries"},
      {index.substr(0, index.size() - 1), "boundaries of documents 82"},
      {index + "xyz", "it has 85 bytes"},
      {index + std::string("\0\1", 2), "the mode of its sequence 1, at byte 83, is 1"},
      {changed(9, packed(std::uint64_t{2})), "its version, at byte 9, is 2"},
      {changed(17, packed(std::uint8_t{9})), "its code of a type, at byte 17, is 9"},
      {changed(18, packed(std::uint64_t{1} << 62U)),
       "it has 82 bytes, and names 4611686018427387904"},
      {changed(26, packed(std::uint64_t{0})), "0 boundaries"},
      {changed(34, packed(std::int32_t{-2})), "the length of its sequence 0, at byte 34, is -2"},
      {changed(38, packed(std::int32_t{4})), "it has 10 bytes, and its index a.idx is of 12"},
      {changed(50, packed(std::int64_t{6})),
       "its sequence 1 begins at byte 6 of a.bin, at byte 50"},
      {changed(58, packed(std::int64_t{1})),
       "its boundary 0 of documents, at byte 58, is sequence 1"},
      {changed(66, packed(std::int64_t{3})),
       "its boundary 1 of documents, at byte 66, is sequence 3"},
      {changed(74, packed(std::int64_t{1})),
       "its boundary 2 of documents, at byte 74, is sequence 1"}};
  for (const auto& [bytes, expected] : cases) {
    const std::string path = write_pair(tokens, bytes);
    const std::string text = problem([&] { (void)open_megatron(path, 100, records_); });
    EXPECT_NE(text.find(expected), std::string::npos) << text << "\nexpected: " << expected;
  }
  // Four sequences, whose boundaries go down in the middle and end where they should.
  const std::string down = write_pair(tokens, megatron_index(8, 2, {1, 1, 1, 2}, {0, 3, 2, 4}));
  EXPECT_NE(problem([&] {
              (void)open_megatron(down, 100, records_);
            }).find("its boundary 2 of documents"),
            std::string::npos);
  std::string path = write_pair(tokens.substr(0, 9), index);
  EXPECT_NE(
      problem([&] { (void)open_megatron(path, 100, records_); }).find("no whole number of ids"),
      std::string::npos);
  path = write_pair(tokens.substr(0, 8), index);
  EXPECT_NE(problem([&] { (void)open_megatron(path, 100, records_); }).find("is of 10"),
            std::string::npos);
  path = write_pair(tokens, index);
  EXPECT_NE(problem([&] {
              (void)open_megatron(path, 9, records_);
            }).find("its token 4, at byte 8, is 9, and model.vocab_size is 9"),
            std::string::npos);
  std::filesystem::remove(directory_.path() / "a.bin");
  EXPECT_NE(
      problem([&] { (void)open_megatron(path, 100, records_); }).find("a.bin is not beside it"),
      std::string::npos);
}

TEST_F(TokenFiles, NumbersThatAreNoIdsAreNamed) {
  const std::string index =
      write_pair(packed(std::vector<double>{1, 2.5, 3}), megatron_index(6, 8, {3}, {0, 1}));
  EXPECT_NE(problem([&] {
              (void)open_megatron(index, 100, records_);
            }).find("its token 1, at byte 8, is 2.5"),
            std::string::npos);
  write_pair(packed(std::vector<std::int32_t>{1, 2, -1}), megatron_index(4, 4, {3}, {0, 1}));
  EXPECT_NE(problem([&] {
              (void)open_megatron(index, 100, records_);
            }).find("its token 2, at byte 8, is -1"),
            std::string::npos);
}

TEST_F(TokenFiles, WhatWasLearntIsKeptForAFileThatIsAsItWas) {
  const std::filesystem::path kept = directory_.path() / "kept/files.json";
  const std::string index =
      write_pair(packed(std::vector<std::uint16_t>{5, 6, 7}), megatron_index(8, 2, {3}, {0, 1}));
  std::string fingerprint;
  {
    FileRecords records(kept);
    fingerprint = open_megatron(index, 100, records)->fingerprint();
    records.save();
  }
  // Other ids in a file of the same size and time are not looked for again, nor could they be found.
  const auto time = std::filesystem::last_write_time(directory_.path() / "a.bin");
  directory_.write("a.bin", packed(std::vector<std::uint16_t>{5, 6, 8}));
  std::filesystem::last_write_time(directory_.path() / "a.bin", time);
  {
    FileRecords records(kept);
    EXPECT_EQ(open_megatron(index, 100, records)->fingerprint(), fingerprint);
    EXPECT_NE(problem([&] { (void)open_megatron(index, 7, records); }).find("is 8"),
              std::string::npos)
        << "a smaller vocabulary is";
  }
  std::filesystem::last_write_time(directory_.path() / "a.bin", time + std::chrono::seconds(1));
  FileRecords records(kept);
  EXPECT_NE(open_megatron(index, 100, records)->fingerprint(), fingerprint);
}

// What lies beside the ids likewise: an index with its kinds of data, and masks, of which a job's
// first rank keeps what the others would find.
TEST_F(TokenFiles, WhatLiesBesideIdsIsReadOnce) {
  const std::filesystem::path kept = directory_.path() / "kept/files.json";
  const auto fingerprint_of =
      [&](const std::function<std::unique_ptr<const TokenStream>(FileRecords&)>& open) {
        FileRecords records(kept);
        std::string fingerprint = open(records)->fingerprint();
        records.save();
        return fingerprint;
      };
  // Of the same size and time.
  const auto rewrite = [&](const std::string& name, const std::string& content) {
    const auto time = std::filesystem::last_write_time(directory_.path() / name);
    directory_.write(name, content);
    std::filesystem::last_write_time(directory_.path() / name, time);
  };
  const auto later = [&](const std::string& name) {
    const std::filesystem::path path = directory_.path() / name;
    std::filesystem::last_write_time(
        path, std::filesystem::last_write_time(path) + std::chrono::seconds(1));
  };
  const auto megatron = [&](FileRecords& records) {
    return open_megatron(directory_.path() / "a.idx", 100, records);
  };
  const std::string index = megatron_index(8, 2, {2, 1}, {0, 1, 2});
  const std::string mask = std::string(kMaskMagic);
  write_pair(packed(std::vector<std::uint16_t>{5, 6, 7}), index + std::string(2, '\0'));
  directory_.write("a.mask", mask + std::string("\0\1\1", 3));
  const std::string first = fingerprint_of(megatron);
  rewrite("a.mask", mask + std::string("\1\1\1", 3));
  rewrite("a.idx", index + std::string("\0\1", 2));
  EXPECT_EQ(fingerprint_of(megatron), first);
  later("a.mask");
  EXPECT_NE(fingerprint_of(megatron), first);
  later("a.idx");
  const std::string text = problem([&] { (void)fingerprint_of(megatron); });
  EXPECT_NE(text.find("the mode of its sequence 1, at byte 83, is 1"), std::string::npos) << text;

  const auto llmq = [](char bits) {
    std::vector<std::int32_t> words(256);
    std::memcpy(words.data(), "BIN.TOK\n", 8);
    words[2] = 2;
    words[3] = 4;
    words[4] = 3;
    words[5] = 10;
    words[6] = 1;
    return packed(words) + packed(std::vector<std::int32_t>{1, 2, 9}) + bits;
  };
  const auto token_file = [&](FileRecords& records) {
    return open_token_file(directory_.path() / "q.bin", {}, 10, records);
  };
  directory_.write("q.bin", llmq('\3'));
  const std::string of_mask = fingerprint_of(token_file);
  rewrite("q.bin", llmq('\2'));
  EXPECT_EQ(fingerprint_of(token_file), of_mask);
  later("q.bin");
  EXPECT_NE(fingerprint_of(token_file), of_mask);
}

TEST_F(TokenFiles, LlmcFilesReadInBothWidths) {
  const auto header = [](std::int32_t magic, std::int32_t version, std::int32_t count) {
    std::vector<std::int32_t> words(256);
    words[0] = magic;
    words[1] = version;
    words[2] = count;
    return packed(words);
  };
  const std::vector<std::int32_t> ids = {50256, 5, 6, 50256, 7};
  const std::string narrow =
      header(20240520, 1, 5) + packed(std::vector<std::uint16_t>(ids.begin(), ids.end()));
  const auto stream = open_token_file(directory_.write("gpt2.bin", narrow), {}, 50257, records_);
  const Read all = read_all(*stream);
  EXPECT_EQ(all.tokens, ids);
  EXPECT_EQ(all.position, (std::vector<std::int32_t>{0, 1, 2, 0, 1}));
  const std::string wide =
      header(20240801, 7, 3) + packed(std::vector<std::uint32_t>{128000, 1, 2});
  EXPECT_EQ(
      read_all(*open_token_file(directory_.write("llama3.bin", wide), {}, 128256, records_)).tokens,
      (std::vector<std::int32_t>{128000, 1, 2}));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {header(20240520, 2, 5) + narrow.substr(1024), "its version, at byte 4, is 2"},
      {narrow.substr(0, narrow.size() - 1),
       "it has 1033 bytes, and of 5 tokens, as its header says, 1034"},
      {narrow + "x", "it has 1035 bytes"},
      {narrow.substr(0, 100), "it has 100 bytes, and its header 1024"},
      {header(123, 1, 5) + narrow.substr(1024), "its first number is 123"}};
  for (const auto& [bytes, expected] : cases) {
    const std::string path = directory_.write("bad.bin", bytes);
    const std::string text = problem([&] { (void)open_token_file(path, {}, 50257, records_); });
    EXPECT_NE(text.find(expected), std::string::npos) << text << "\nexpected: " << expected;
  }
}

TEST_F(TokenFiles, LlmqFilesHavePositionsAndMasks) {
  const auto file = [](std::int32_t version,
                       std::int32_t vocabulary,
                       bool masked,
                       const std::string& rest) {
    std::vector<std::int32_t> words(256);
    std::memcpy(words.data(), "BIN.TOK\n", 8);
    words[2] = version;
    words[3] = 4;
    words[4] = 10;
    words[5] = vocabulary;
    words[6] = masked ? 1 : 0;
    return packed(words) + packed(std::vector<std::int32_t>{1, 2, 3, 4, 9, 5, 6, 7, 8, 9}) + rest;
  };
  // Bits 2, 3, 5 and 9, of inputs: tokens 3, 4 and 6 are learnt.
  const std::string mask("\x2C\x02", 2);
  const auto stream = open_token_file(
      directory_.write("m.bin", file(2, 10, true, mask)), {.first = -1, .last = 9}, 10, records_);
  const Read all = read_all(*stream);
  EXPECT_EQ(all.position, (std::vector<std::int32_t>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4}));
  ASSERT_TRUE(stream->has_mask());
  for (std::size_t begin = 0; begin < 10; ++begin) {
    std::vector<std::uint8_t> learnt(10 - begin);
    stream->read_mask(begin, learnt);
    const std::vector<std::uint8_t> expected = {1, 0, 0, 1, 1, 0, 1, 0, 0, 0};
    EXPECT_EQ(learnt,
              std::vector<std::uint8_t>(expected.begin() + static_cast<std::ptrdiff_t>(begin),
                                        expected.end()));
  }
  // And a sample has those targets alone, none of which begins a document.
  const ValidationLoader loader(*stream, {0, 10}, 9);
  std::vector<std::int32_t> tokens(9);
  std::vector<std::int32_t> targets(9);
  std::vector<std::int32_t> position(9);
  EXPECT_EQ(loader.sample(0, {tokens, targets, position}), 3);
  EXPECT_EQ(targets, (std::vector<std::int32_t>{-1, -1, 4, 9, -1, 6, -1, -1, -1}));

  const std::string positions = packed(std::vector<std::int32_t>{0, 1, 2, 0, 1, 2, 3, 0, 1, 2});
  const auto third =
      open_token_file(directory_.write("p.bin", file(3, 10, false, positions)), {}, 10, records_);
  EXPECT_EQ(read_all(*third).position, (std::vector<std::int32_t>{0, 1, 2, 0, 1, 2, 3, 0, 1, 2}));
  for (const auto& [bytes, expected] : std::vector<std::pair<std::string, std::string>>{
           {file(2, 11, false, ""), "its vocabulary, at byte 20, is 11"},
           {file(4, 10, false, ""), "its version, at byte 8, is 4"},
           {file(2, 10, true, "\x2C"), "it has 1065 bytes"}}) {
    const std::string path = directory_.write("bad.bin", bytes);
    const std::string text = problem([&] { (void)open_token_file(path, {}, 10, records_); });
    EXPECT_NE(text.find(expected), std::string::npos) << text << "\nexpected: " << expected;
  }
}

TEST_F(TokenFiles, WithoutBoundariesASampleIsOneText) {
  const std::string index = write_pair(packed(std::vector<std::uint16_t>{1, 2, 3, 4, 5, 6}),
                                       megatron_index(8, 2, {2, 4}, {0, 1, 2}));
  const auto stream = open_megatron(index, 100, records_);
  std::vector<std::int32_t> tokens(5);
  std::vector<std::int32_t> targets(5);
  std::vector<std::int32_t> position(5);
  EXPECT_EQ(ValidationLoader(*stream, {0, 6}, 5).sample(0, {tokens, targets, position}), 4);
  EXPECT_EQ(targets, (std::vector<std::int32_t>{2, -1, 4, 5, 6}));
  EXPECT_EQ(position, (std::vector<std::int32_t>{0, 1, 0, 1, 2}));
  EXPECT_EQ(ValidationLoader(*stream, {0, 6}, 5, Boundaries::ignored)
                .sample(0, {tokens, targets, position}),
            5);
  EXPECT_EQ(targets, (std::vector<std::int32_t>{2, 3, 4, 5, 6}));
  EXPECT_EQ(position, (std::vector<std::int32_t>{0, 1, 2, 3, 4}));
}

TEST_F(TokenFiles, JoinedStreamsReadOneBehindTheOther) {
  const std::string index =
      write_pair(packed(std::vector<std::uint16_t>{1, 2, 3}), megatron_index(8, 2, {3}, {0, 1}));
  const std::shared_ptr<const TokenStream> one = open_megatron(index, 100, records_);
  const auto joined = join({one, one});
  const Read all = read_all(*joined);
  EXPECT_EQ(all.tokens, (std::vector<std::int32_t>{1, 2, 3, 1, 2, 3}));
  EXPECT_EQ(all.position, (std::vector<std::int32_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_NE(joined->fingerprint(), one->fingerprint());
}

// However chunks are shared out, records are those of one process.
TEST_F(TokenFiles, ScansOfPartsAreTheScanOfTheWhole) {
  std::vector<std::int32_t> first(3'000'000, 7);  // three chunks
  first[2'900'000] = 90;
  const std::string a = directory_.write("a", packed(first));
  const std::string b = directory_.write("b", "x" + packed(std::vector<std::uint16_t>(9, 5)));
  const auto column = [](const std::string& path, IdColumn::Type type, std::uint64_t offset) {
    IdColumn ids{.file = InputFile(path), .offset = offset, .type = type};
    ids.count = (ids.file.size() - offset) / ids.item_bytes();
    return ids;
  };
  const IdColumn ids_a = column(a, IdColumn::Type::i32, 0);
  const IdColumn ids_b = column(b, IdColumn::Type::u16, 1);
  FileRecords alone;
  const std::vector<FileRecords::Record> expected = {scan(ids_a, 100, alone),
                                                     scan(ids_b, 100, alone)};
  EXPECT_EQ(expected[0].largest_id, 90);
  EXPECT_EQ(expected[1].largest_id, 5);
  const auto columns =
      IdScan::from_text(IdScan::to_text({IdScan::describe(ids_a), IdScan::describe(ids_b)}));
  std::string results;
  const std::vector<std::uint64_t> cuts = {0, 2, 2, 4};
  for (std::size_t part = 0; part + 1 < cuts.size(); ++part) {
    IdScan scan(columns, 100);
    ASSERT_EQ(scan.num_chunks(), 4U);
    scan.take(cuts[part], cuts[part + 1]);
    while (scan.advance(0)) {
    }
    EXPECT_EQ(scan.num_read(), cuts[part + 1] - cuts[part]);
    results += scan.result();
  }
  FileRecords records;
  IdScan(columns, 100).keep(results, records);
  const std::vector<const IdColumn*> files = {&ids_a, &ids_b};
  for (std::size_t i = 0; i < files.size(); ++i) {
    const auto found = records.find(files[i]->file, scan_name(*files[i]));
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->digest, expected[i].digest);
    EXPECT_EQ(found->largest_id, expected[i].largest_id);
  }
  const std::string text = problem([&] {
    IdScan scan(columns, 90);
    scan.take(2, 4);
    scan.advance(0);
  });
  EXPECT_NE(text.find("its token 2900000, at byte 11600000, is 90"), std::string::npos) << text;
  directory_.write("b", "longer than it was for the first rank");
  EXPECT_NE(problem([&] { IdScan(columns, 100); }).find("where the first rank reads it"),
            std::string::npos);
}

}  // namespace
}  // namespace memphis
