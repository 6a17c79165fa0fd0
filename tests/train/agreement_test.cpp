// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/agreement.h"

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/data/megatron_stream.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

// Ranks read a corpus of tokens once among them, and what they find is what one rank does.
TEST(OpenText, RanksShareTheFirstLookAtIds) {
  const TemporaryDirectory directory;
  std::vector<std::uint16_t> ids(5'000'000);  // three chunks
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<std::uint16_t>(i * 7919 % 4001);
  }
  ids[4'500'000] = 4050;
  std::string file(1024, '\0');
  const std::vector<std::int32_t> header = {20240520, 1, static_cast<std::int32_t>(ids.size())};
  file.replace(0, 12, reinterpret_cast<const char*>(header.data()), 12);
  file.append(reinterpret_cast<const char*>(ids.data()), 2 * ids.size());
  const std::string corpus = directory.write("corpus.bin", file);
  std::vector<std::string> fingerprints;
  std::vector<std::string> records;
  for (const int num_ranks : {1, 3}) {
    const std::string run = (directory.path() / ("run" + std::to_string(num_ranks))).string();
    const Config config = parse_config(tiny_yaml(directory),
                                       "tiny.yaml",
                                       {"run.dir=" + run,
                                        "data.train=[" + corpus + "]",
                                        "data.tokenizer=none",
                                        "model.vocab_size=4096"});
    std::mutex mutex;
    on_ranks(Ranks::threads, num_ranks, [&](World& world) {
      const auto all = create_group_of_all(world);
      const Dataset dataset = open_text(config, {}, *all);
      const std::scoped_lock lock(mutex);
      fingerprints.push_back(dataset.fingerprint);
    });
    const auto kept = parse_json(read_text(run + "/tokens/files.json")).value();
    ASSERT_EQ(kept.at("files").size(), 1U);
    records.push_back(kept.at("files").front().dump());
    EXPECT_NE(records.back().find("4050"), std::string::npos);
  }
  EXPECT_EQ(records[0], records[1]);
  EXPECT_EQ(fingerprints, std::vector<std::string>(4, fingerprints.front()));
}

// What this thread has asked the system for, in bytes; -1 where the system does not count.
std::int64_t bytes_read_by_this_thread() {
  std::ifstream counters("/proc/thread-self/io");
  std::string name;
  std::int64_t bytes = -1;
  counters >> name >> bytes;
  return name == "rchar:" ? bytes : -1;
}

// An index and masks, too, are read by one rank, and the others take from the run's directory what it
// has found.
TEST(OpenText, WhatLiesBesideIdsIsReadByOneRank) {
  if (bytes_read_by_this_thread() < 0) {
    GTEST_SKIP() << "the system does not count what a thread reads";
  }
  const TemporaryDirectory directory;
  constexpr std::int32_t kDocuments = 500'000;  // an index of 10 MB, masks of 1 MB and 125 kB
  const auto packed = [](const auto& values) {
    return std::string(reinterpret_cast<const char*>(values.data()),
                       values.size() * sizeof(values.front()));
  };
  std::vector<std::int32_t> lengths(kDocuments, 2);
  std::vector<std::int64_t> pointers(kDocuments);
  std::vector<std::int64_t> boundaries(kDocuments + 1);
  for (std::size_t i = 0; i <= kDocuments; ++i) {
    boundaries[i] = static_cast<std::int64_t>(i);
    if (i < kDocuments) {
      pointers[i] = static_cast<std::int64_t>(4 * i);
    }
  }
  const std::vector<std::uint64_t> counts = {kDocuments, kDocuments + 1};
  const std::string index = std::string("MMIDIDX\0\0", 9) + packed(std::vector<std::uint64_t>{1}) +
                            "\x08" + packed(counts) + packed(lengths) + packed(pointers) +
                            packed(boundaries);
  const std::string ids = packed(std::vector<std::uint16_t>(2 * kDocuments, 7));
  directory.write("a.bin", ids);
  const std::string corpus = directory.write("a.idx", index);
  directory.write("a.mask", std::string(kMaskMagic) + std::string(2 * kDocuments, '\1'));
  std::vector<std::int32_t> header(256);
  std::memcpy(header.data(), "BIN.TOK\n", 8);
  header[2] = 2;
  header[3] = 4;
  header[4] = 2 * kDocuments;
  header[5] = 300;
  header[6] = 1;
  const std::string tokens =
      directory.write("q.bin",
                      packed(header) + packed(std::vector<std::int32_t>(2 * kDocuments, 7)) +
                          std::string(2 * kDocuments / 8, '\xFF'));
  const Config config = parse_config(tiny_yaml(directory),
                                     "tiny.yaml",
                                     {"run.dir=" + (directory.path() / "run").string(),
                                      "data.train=[" + corpus + "," + tokens + "]",
                                      "data.tokenizer=none",
                                      "model.vocab_size=4096"});
  // Ids are scanned by all ranks, and are known here.
  const auto open = [&](int num_ranks) {
    std::vector<std::int64_t> read(static_cast<std::size_t>(num_ranks));
    on_ranks(Ranks::threads, num_ranks, [&](World& world) {
      const auto all = create_group_of_all(world);
      const std::int64_t before = bytes_read_by_this_thread();
      const Dataset dataset = open_text(config, {}, *all);
      read[static_cast<std::size_t>(world.rank())] = bytes_read_by_this_thread() - before;
    });
    return read;
  };
  (void)open(1);
  auto kept = parse_json(read_text(directory.path() / "run/tokens/files.json")).value();
  std::erase_if(kept.at("files").get_ref<nlohmann::json::object_t&>(),
                [](const auto& record) { return !record.first.starts_with("ids"); });
  ASSERT_EQ(kept.at("files").size(), 2U);
  directory.write("run/tokens/files.json", kept.dump());
  const std::vector<std::int64_t> read = open(3);
  const std::int64_t masks = 2 * kDocuments + kDocuments / 4;
  EXPECT_GT(read[0], static_cast<std::int64_t>(index.size()) + masks);
  // Of each file its beginning, to tell what it is, of the index 2^14 starts of documents, two numbers
  // each, and headers.
  for (const std::size_t rank : {1U, 2U}) {
    EXPECT_LT(read[rank], 2 * (1 << 16) + (1 << 14) * 16 + 50'000) << "rank " << rank;
  }
}

}  // namespace
}  // namespace memphis::test
