// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/read_back.h"

#include <atomic>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/checkpoint/writer.h"
#include "csrc/comm/threads.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "tests/checkpoint/source.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using test::ramp;
using test::source;
using test::TemporaryDirectory;

constexpr int kNumFiles = 5;

std::string file_name(int index) {
  return "part-" + std::to_string(index) + ".safetensors";
}

void save(const fs::path& run_dir, std::int64_t step) {
  CheckpointWriter writer(run_dir, step);
  for (int i = 0; i < kNumFiles; ++i) {
    writer.add_tensors(file_name(i), std::vector{source<float>("w", {3000}, ramp(3000))});
  }
  writer.commit({.step = 0,
                 .samples = step,
                 .seed = 1,
                 .dataset_fingerprint = "abc",
                 .config = "",
                 .files = {}});
}

void flip_last_byte(const fs::path& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-1, std::ios::end);
  const int last = file.get();
  file.seekp(-1, std::ios::end);
  file.put(static_cast<char>(last ^ 1));
}

void on_all(int num_ranks, const std::function<void(Communicator& all, int rank)>& body) {
  run_threads(num_ranks, [&](World& world) {
    std::vector<int> ranks;
    for (int r = 0; r < num_ranks; ++r) {
      ranks.push_back(r);
    }
    body(*world.create_group("all", ranks, Device::cpu), world.rank());
  });
}

Scan scan_on(int num_ranks, const fs::path& run_dir) {
  Scan scan;
  on_all(num_ranks, [&](Communicator& all, int /*rank*/) {
    with_all_reading_back(
        all, "test", [&](const Verify& verify) { scan = find_newest_valid(run_dir, verify); });
  });
  return scan;
}

// Fewer ranks than files, as many, and more: each file is somebody's.
TEST(ReadBack, FindsTheSameOnAnyNumberOfRanks) {
  for (int damaged = 0; damaged < kNumFiles; ++damaged) {
    const TemporaryDirectory directory;
    save(directory.path(), 10);
    save(directory.path(), 20);
    for (const int num_ranks : {1, 2, 3, 5, 8}) {
      EXPECT_EQ(scan_on(num_ranks, directory.path()).newest->manifest.step, 20) << num_ranks;
    }
    flip_last_byte(directory.path() / "step-00000020" / file_name(damaged));
    const Scan alone = find_newest_valid(directory.path());
    for (const int num_ranks : {1, 2, 3, 5, 8}) {
      const Scan scan = scan_on(num_ranks, directory.path());
      ASSERT_TRUE(scan.newest) << num_ranks;
      EXPECT_EQ(scan.newest->manifest, alone.newest->manifest) << num_ranks;
      ASSERT_EQ(scan.rejected.size(), 1U) << num_ranks;
      EXPECT_EQ(scan.rejected[0].reason, alone.rejected[0].reason) << num_ranks;
      EXPECT_NE(scan.rejected[0].reason.find(file_name(damaged)), std::string::npos);
      EXPECT_NE(scan.rejected[0].reason.find(": bytes 8192 to "), std::string::npos)
          << scan.rejected[0].reason;
    }
  }
}

TEST(ReadBack, ReadsWhatIsNoCheckpointWithoutTheOthers) {
  const TemporaryDirectory directory;
  save(directory.path(), 10);
  fs::remove(directory.path() / "step-00000010" / "COMMIT");
  const Scan scan = scan_on(3, directory.path());
  EXPECT_FALSE(scan.newest);
  ASSERT_EQ(scan.rejected.size(), 1U);
  EXPECT_EQ(scan.rejected[0].reason, "COMMIT is missing");
}

TEST(ReadBack, EndsAllRanksWhereTheFirstFails) {
  std::atomic<int> num_failed = 0;
  on_all(3, [&](Communicator& all, int rank) {
    try {
      with_all_reading_back(all, "test", [](const Verify& /*verify*/) {
        throw CheckpointError("the directory cannot be read");
      });
    } catch (const Error& error) {
      ++num_failed;
      EXPECT_EQ(error.code(), ExitCode::checkpoint);
      EXPECT_EQ(std::string(error.what()) == "the directory cannot be read", rank == 0);
    }
  });
  EXPECT_EQ(num_failed, 3);
}

TEST(ReadBack, HandsTextsOfAnyLengthOn) {
  for (const std::size_t length : {0, 1, 7, 8, 9, 4096}) {
    const std::string text(length, 'x');
    on_all(3, [&](Communicator& all, int rank) {
      EXPECT_EQ(text_of_rank(all, 1, rank == 1 ? text : "not this", "test"), text);
    });
  }
}

}  // namespace
}  // namespace memphis
