// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/agreement.h"

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
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

}  // namespace
}  // namespace memphis::test
