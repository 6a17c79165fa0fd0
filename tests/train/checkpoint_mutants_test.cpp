// SPDX-License-Identifier: Apache-2.0
//
// Whatever a disk, a copy or a hand has done to the files of a checkpoint, it is not taken for one, what
// is said of it names a file that is wrong, and the checkpoint before it is used. MEMPHIS_MUTANTS is the
// number of damages that are tried, 200 without it.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/checkpoint/store.h"
#include "csrc/core/file.h"
#include "csrc/train/trainer.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

using Files = std::map<std::string, std::string>;

Files read_files(const fs::path& checkpoint) {
  Files files;
  for (const fs::directory_entry& entry : fs::directory_iterator(checkpoint)) {
    files[entry.path().filename().string()] = read_text(entry.path());
  }
  return files;
}

void write_file(const fs::path& path, const std::string& bytes) {
  fs::remove_all(path);
  std::ofstream(path, std::ios::binary) << bytes;
}

class Mutants : public testing::Test {
 protected:
  Mutants() {
    for (const char* run : {"run", "other"}) {
      std::vector<std::string> overrides = {"schedule.steps=8",
                                            "schedule.warmup_steps=2",
                                            "checkpoint.every=4",
                                            "metrics.validate_every=0",
                                            "run.dir=" + (directory_.path() / run).string()};
      if (std::string(run) == "other") {
        overrides.push_back("run.seed=4711");
      }
      Trainer(tiny_config(directory_, overrides), {}).run();
    }
    run_ = directory_.path() / "run";
    newest_ = run_ / checkpoint_name(8);
    files_ = read_files(newest_);
    older_ = read_files(run_ / checkpoint_name(4));
    other_ = read_files(directory_.path() / "other" / checkpoint_name(8));
    for (const auto& [name, bytes] : files_) {
      names_.push_back(name);
    }
  }

  std::uint64_t below(std::uint64_t end) {
    return std::uniform_int_distribution<std::uint64_t>(0, end - 1)(random_);
  }
  std::string any_name() { return names_[below(names_.size())]; }

  // What was done, and to which files.
  struct Damage {
    std::string what;
    std::set<std::string> files;
  };

  Damage damage() {
    const std::string name = any_name();
    std::string bytes = files_.at(name);
    switch (below(13)) {
      case 0:
      case 1: {
        const std::uint64_t bit = below(bytes.size() * 8);
        bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
        write_file(newest_ / name, bytes);
        return {"bit " + std::to_string(bit), {name}};
      }
      case 2: {
        bytes.resize(below(bytes.size()));
        write_file(newest_ / name, bytes);
        return {"cut to " + std::to_string(bytes.size()), {name}};
      }
      case 3: {
        const std::uint64_t count = 1 + below(64);
        write_file(newest_ / name, bytes + std::string(count, static_cast<char>(below(256))));
        return {std::to_string(count) + " bytes appended", {name}};
      }
      case 4:
        fs::remove(newest_ / name);
        return {"removed", {name}};
      case 5: {
        const std::string second = any_name();
        write_file(newest_ / name, files_.at(second));
        write_file(newest_ / second, bytes);
        return {"swapped", {name, second}};
      }
      case 6:
        write_file(newest_ / name, older_.at(name));
        return {"of an older step", {name}};
      case 7:
        write_file(newest_ / name, other_.at(name));
        return {"of another run", {name}};
      case 8: {  // a sector that was never written
        const std::uint64_t sector = below((bytes.size() + 511) / 512) * 512;
        std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(sector),
                    std::min<std::uint64_t>(512, bytes.size() - sector),
                    '\0');
        write_file(newest_ / name, bytes);
        return {"a sector of zeros at " + std::to_string(sector), {name}};
      }
      case 9: {  // or that was written in the wrong place
        const std::uint64_t sectors = (bytes.size() + 511) / 512;
        const std::uint64_t from = below(sectors) * 512;
        const std::uint64_t to = below(sectors) * 512;
        const std::uint64_t count =
            std::min<std::uint64_t>({512, bytes.size() - from, bytes.size() - to});
        bytes.replace(to, count, files_.at(name), from, count);
        write_file(newest_ / name, bytes);
        return {"a sector copied to " + std::to_string(to), {name}};
      }
      case 10: {  // all is of one other run but one file, or but two
        const std::string second = any_name();
        for (const auto& [each, content] : other_) {
          if (each != name && each != second) {
            write_file(newest_ / each, content);
          }
        }
        return {"of another run but " + name + " and " + second, {names_.begin(), names_.end()}};
      }
      case 11: {
        fs::rename(newest_ / name, directory_.path() / "target");
        fs::create_symlink(directory_.path() / "target", newest_ / name);
        return {"a link to itself elsewhere", {name}};
      }
      default:
        fs::remove(newest_ / name);
        fs::create_directory(newest_ / name);
        return {"a directory", {name}};
    }
  }

  // Whether what lies there is what was written, as regular files: no damage after all. Or all of it,
  // whole, of another run.
  bool is_whole() const {
    for (const std::string& name : names_) {
      if (!fs::is_regular_file(fs::symlink_status(newest_ / name))) {
        return false;
      }
    }
    const Files now = read_files(newest_);
    return now == files_ || now == other_;
  }

  void restore() {
    fs::remove_all(newest_);
    fs::create_directory(newest_);
    for (const auto& [name, bytes] : files_) {
      write_file(newest_ / name, bytes);
    }
  }

  TemporaryDirectory directory_;
  std::mt19937_64 random_{test_seed()};
  fs::path run_;
  fs::path newest_;
  Files files_;
  Files older_;
  Files other_;
  std::vector<std::string> names_;
};

// The first and the last byte of each range that "weights.safetensors has ...: bytes 0 to 4095, 8192
// to 9000 changed" names.
std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges_in(const std::string& reason) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  const std::regex range("([0-9]+) to ([0-9]+)");
  for (std::sregex_iterator it(reason.begin(), reason.end(), range), end; it != end; ++it) {
    ranges.emplace_back(std::stoull((*it)[1]), std::stoull((*it)[2]));
  }
  return ranges;
}

// Whether each byte that is another one is in a range that is named, and each of these has one.
void expect_located(const std::string& reason, const std::string& was, const std::string& is) {
  const auto ranges = ranges_in(reason);
  ASSERT_FALSE(ranges.empty()) << reason;
  std::vector<bool> met(ranges.size());
  const bool has_more = reason.find("more places") != std::string::npos;
  for (std::size_t at = 0; at < was.size(); ++at) {
    if (was[at] == is[at]) {
      continue;
    }
    bool named = false;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      if (at >= ranges[i].first && at <= ranges[i].second) {
        named = met[i] = true;
      }
    }
    ASSERT_TRUE(named || (has_more && at > ranges.back().second)) << at << ": " << reason;
  }
  EXPECT_EQ(std::count(met.begin(), met.end(), false), 0) << reason;
}

TEST_F(Mutants, NoneIsAcceptedAndEachIsNamed) {
  ASSERT_EQ(find_newest_valid(run_).newest->path, newest_);
  const char* const wanted = std::getenv("MEMPHIS_MUTANTS");
  const int most = wanted == nullptr ? 200 : std::atoi(wanted);
  int count = 0;
  int num_located = 0;
  while (count < most) {
    restore();
    const Damage done = damage();
    std::string what = done.what + " in";
    for (const std::string& name : done.files) {
      what += " " + name;
    }
    if (is_whole()) {
      continue;
    }
    ++count;
    const Scan scan = find_newest_valid(run_);
    ASSERT_TRUE(scan.newest.has_value()) << what;
    ASSERT_EQ(scan.newest->manifest.step, 4) << what << ": accepted";
    ASSERT_EQ(scan.rejected.size(), 1U) << what;
    const std::string& reason = scan.rejected[0].reason;
    const bool named =
        std::any_of(done.files.begin(), done.files.end(), [&](const std::string& name) {
          return reason.find(name) != std::string::npos;
        });
    ASSERT_TRUE(named) << what << ": " << reason;
    if (reason.find("after it was written") != std::string::npos) {
      const std::string file = reason.substr(0, reason.find(' '));
      const std::string now = read_text(newest_ / file);
      const std::string& was = files_.at(file);
      // That of the other run has the sizes of its own manifest.
      if (done.files.size() < names_.size()) {
        expect_located(reason, was, now);
        ++num_located;
      }
    }
  }
  EXPECT_GT(num_located, count / 8);
  std::cout << count << " damages, none accepted, " << num_located << " of them located\n";
}

// The program goes on from the older one, and comes to the same end.
TEST_F(Mutants, ARunGoesOnFromTheOneBefore) {
  for (int i = 0; i < 6; ++i) {
    restore();
    Damage done = damage();
    if (is_whole()) {
      continue;
    }
    Trainer(tiny_config(directory_,
                        {"schedule.steps=8",
                         "schedule.warmup_steps=2",
                         "checkpoint.every=4",
                         "metrics.validate_every=0",
                         "run.dir=" + run_.string()}),
            {})
        .run();
    const Files now = read_files(newest_);
    for (const auto& [name, bytes] : files_) {
      if (name.ends_with(".safetensors")) {
        EXPECT_TRUE(now.at(name) == bytes) << done.what << ": " << name;
      }
    }
  }
}

}  // namespace
}  // namespace memphis::test
