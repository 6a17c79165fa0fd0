// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/store.h"

#include <fstream>
#include <functional>
#include <ostream>
#include <set>

#include <gtest/gtest.h>
#include <unistd.h>

#include "csrc/checkpoint/writer.h"
#include "csrc/core/error.h"
#include "tests/checkpoint/source.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using test::error_text;
using test::follows_grammar;
using test::ramp;
using test::source;
using test::TemporaryDirectory;

fs::path save(const fs::path& run_dir, std::int64_t step) {
  CheckpointWriter writer(run_dir, step);
  writer.add_tensors("model.safetensors", std::vector{source<float>("w", {64}, ramp(64))});
  return writer.commit({
      .step = 0,
      .samples = 16 * step,
      .seed = 1,
      .dataset_fingerprint = "abc",
      .config = "",
      .files = {},
  });
}

void overwrite(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

// The manifest with one text for another, and a marker that agrees with it.
void forge_manifest(const fs::path& checkpoint, const std::string& from, const std::string& to) {
  std::string text = read_text(checkpoint / "manifest.json");
  const std::size_t place = text.find(from);
  ASSERT_NE(place, std::string::npos) << from;
  text.replace(place, from.size(), to);
  overwrite(checkpoint / "manifest.json", text);
  overwrite(checkpoint / "COMMIT", checksum_text(checksum_of(text)) + "\n");
}

struct Damage {
  const char* name;
  std::function<void(const fs::path&)> inflict;
  std::string reason;  // a part of it
};

std::ostream& operator<<(std::ostream& out, const Damage& damage) {
  return out << damage.name;
}

std::vector<Damage> damages() {
  const auto forge = [](std::string from, std::string to) {
    return [from = std::move(from), to = std::move(to)](const fs::path& checkpoint) {
      forge_manifest(checkpoint, from, to);
    };
  };
  const auto link = [](const char* name) {
    return [name](const fs::path& checkpoint) {
      fs::rename(checkpoint / name, checkpoint / "elsewhere");
      fs::create_symlink("elsewhere", checkpoint / name);
    };
  };
  const auto remove = [](const char* name) {
    return [name](const fs::path& checkpoint) { fs::remove(checkpoint / name); };
  };
  const auto flip = [](const char* name, std::size_t from_end) {
    return [name, from_end](const fs::path& checkpoint) {
      std::string text = read_text(checkpoint / name);
      text[text.size() - from_end] = static_cast<char>(text[text.size() - from_end] ^ 1);
      overwrite(checkpoint / name, text);
    };
  };
  const std::string name = "\"name\": \"model.safetensors\"";
  return {
      {"no_marker", remove("COMMIT"), "COMMIT is missing"},
      {"no_manifest", remove("manifest.json"), "manifest.json is missing"},
      {"no_shard", remove("model.safetensors"), "model.safetensors is missing"},
      {"empty_marker",
       [](const fs::path& checkpoint) { overwrite(checkpoint / "COMMIT", ""); },
       "manifest.json does not match COMMIT"},
      {"torn_marker",
       [](const fs::path& checkpoint) { fs::resize_file(checkpoint / "COMMIT", 9); },
       "manifest.json does not match COMMIT"},
      {"empty_shard",
       [](const fs::path& checkpoint) { overwrite(checkpoint / "model.safetensors", ""); },
       "model.safetensors has 0 bytes, not "},
      {"truncated_shard",
       [](const fs::path& checkpoint) {
         fs::resize_file(checkpoint / "model.safetensors",
                         fs::file_size(checkpoint / "model.safetensors") - 1);
       },
       "model.safetensors has "},
      {"longer_shard",
       [](const fs::path& checkpoint) {
         fs::resize_file(checkpoint / "model.safetensors",
                         fs::file_size(checkpoint / "model.safetensors") + 1);
       },
       "model.safetensors has "},
      {"flipped_last_bit", flip("model.safetensors", 1), "changed after it was written"},
      {"flipped_bit_inside", flip("model.safetensors", 100), "changed after it was written"},
      {"flipped_bit_of_manifest", flip("manifest.json", 10), "manifest.json does not match COMMIT"},
      {"shard_is_link", link("model.safetensors"), "model.safetensors is a symbolic link"},
      {"manifest_is_link", link("manifest.json"), "manifest.json is a symbolic link"},
      {"marker_is_link", link("COMMIT"), "COMMIT is a symbolic link"},
      {"shard_is_directory",
       [](const fs::path& checkpoint) {
         fs::remove(checkpoint / "model.safetensors");
         fs::create_directory(checkpoint / "model.safetensors");
       },
       "model.safetensors is not a regular file"},
      {"directory_is_link",
       [](const fs::path& checkpoint) {
         const fs::path away = checkpoint.parent_path() / "away";
         fs::rename(checkpoint, away);
         fs::create_directory_symlink(away, checkpoint);
       },
       "it is not a directory"},
      {"directory_is_file",
       [](const fs::path& checkpoint) {
         fs::remove_all(checkpoint);
         overwrite(checkpoint, "x");
       },
       "it is not a directory"},
      {"name_leaves_directory",
       forge(name, R"("name": "../step-00000010/model.safetensors")"),
       "the file name '../step-00000010/model.safetensors' is not a bare name"},
      {"absolute_name", forge(name, R"("name": "/etc/passwd")"), "is not a bare name"},
      {"name_of_parent", forge(name, R"("name": "..")"), "the file name '..' is not a bare name"},
      {"another_version",
       forge("\"format_version\": 1", "\"format_version\": 2"),
       "format_version is 2, not 1"},
      {"another_step", forge("\"step\": 20", "\"step\": 21"), "its manifest is of step 21"},
      {"renamed",
       [](const fs::path& checkpoint) {
         fs::rename(checkpoint, checkpoint.parent_path() / "step-00000030");
       },
       "its manifest is of step 20"},
  };
}

class DamagedCheckpoint : public testing::TestWithParam<Damage> {};

TEST_P(DamagedCheckpoint, IsRejectedWithItsReasonAndTheOlderOneIsFound) {
  const TemporaryDirectory directory;
  const fs::path older = save(directory.path(), 10);
  const fs::path newer = save(directory.path(), 20);
  ASSERT_EQ(find_newest_valid(directory.path()).newest->path, newer);
  GetParam().inflict(newer);
  const Scan scan = find_newest_valid(directory.path());
  ASSERT_TRUE(scan.newest);
  EXPECT_EQ(scan.newest->path, older);
  ASSERT_EQ(scan.rejected.size(), 1U);
  EXPECT_NE(scan.rejected[0].reason.find(GetParam().reason), std::string::npos)
      << scan.rejected[0].reason;

  // With the older one gone nothing is valid, and no policy starts from scratch or writes over it.
  fs::remove_all(older);
  for (const Resume resume : {Resume::automatic, Resume::required}) {
    const std::string text =
        error_text<CheckpointError>([&] { choose_checkpoint(directory.path(), resume); });
    EXPECT_NE(text.find(GetParam().reason), std::string::npos) << text;
    EXPECT_TRUE(follows_grammar(text));
  }
}

INSTANTIATE_TEST_SUITE_P(Table,
                         DamagedCheckpoint,
                         testing::ValuesIn(damages()),
                         [](const auto& each) { return std::string(each.param.name); });

TEST(Store, OrdersBySteps) {
  const TemporaryDirectory directory;
  save(directory.path(), 99'999'999);
  const fs::path newest = save(directory.path(), 100'000'000);  // sorts before it as a text
  EXPECT_EQ(newest.filename(), "step-100000000");
  EXPECT_EQ(find_newest_valid(directory.path()).newest->path, newest);
}

TEST(Store, LooksNoFurtherThanTheNewestValidOne) {
  const TemporaryDirectory directory;
  fs::remove(save(directory.path(), 10) / "COMMIT");
  save(directory.path(), 20);
  EXPECT_TRUE(find_newest_valid(directory.path()).rejected.empty());
}

// The last four with the record that nothing was ever saved.
enum class State {
  absent,
  empty,
  logged,
  unlogged,
  unfinished,
  invalid,
  valid,
  foreign,
  early_logged,
  early_unfinished,
  early_invalid,
  early_valid
};

void make_state(const TemporaryDirectory& directory, State state) {
  switch (state) {
    case State::absent:
      break;
    case State::empty:
      fs::create_directory(directory.path() / "run");
      break;
    case State::logged:
      directory.write("run/metrics.jsonl", "{\"step\": 1}\n");
      break;
    case State::unlogged:
      directory.write("run/metrics.jsonl", "");
      directory.write("run/config.yaml", "run: {}\n");
      break;
    case State::unfinished:
      fs::create_directories(directory.path() / "run" / "step-00000010.tmp");
      break;
    case State::invalid:
      fs::remove(save(directory.path() / "run", 10) / "COMMIT");
      break;
    case State::valid:
      save(directory.path() / "run", 10);
      break;
    case State::foreign:
      fs::create_directories(directory.path() / "run" / "step-last");
      break;
    case State::early_logged:
      make_state(directory, State::logged);
      note_nothing_saved(directory.path() / "run");
      break;
    case State::early_unfinished:
      make_state(directory, State::unfinished);
      note_nothing_saved(directory.path() / "run");
      break;
    case State::early_invalid:  // it was committed, whatever the record says
      fs::remove(save(directory.path() / "run", 10) / "model.safetensors");
      note_nothing_saved(directory.path() / "run");
      break;
    case State::early_valid:
      make_state(directory, State::valid);
      note_nothing_saved(directory.path() / "run");
      break;
  }
}

std::string outcome(const fs::path& run_dir, Resume resume) {
  try {
    return choose_checkpoint(run_dir, resume) ? "resume" : "scratch";
  } catch (const CheckpointError& error) {
    EXPECT_TRUE(follows_grammar(error.what()));
    return "checkpoint error";
  } catch (const ConfigError& error) {
    EXPECT_TRUE(follows_grammar(error.what()));
    return "config error";
  }
}

// A run that is at it takes away what is read, once it has saved anew.
TEST(Store, WhatGoesWhileItIsReadIsNoDamage) {
  const TemporaryDirectory directory;
  const fs::path first = save(directory.path(), 10);
  const Verify racing = [&](const fs::path& path) {
    if (path == first) {
      save(directory.path(), 20);
      fs::remove_all(first);
    }
    return verify_checkpoint(path);
  };
  const Scan scan = find_newest_valid(directory.path(), racing);
  ASSERT_TRUE(scan.newest.has_value());
  EXPECT_EQ(scan.newest->manifest.step, 20);
  EXPECT_TRUE(scan.rejected.empty());
  // And what is half done is told from what is damaged.
  fs::create_directory(directory.path() / "step-00000030.tmp");
  const Scan half = find_newest_valid(directory.path());
  ASSERT_EQ(half.rejected.size(), 1U);
  EXPECT_TRUE(half.rejected[0].unfinished);
}

TEST(Store, ResumePolicy) {
  struct Row {
    State state;
    const char* automatic;
    const char* required;
    const char* never;
  };
  const Row rows[] = {
      {State::absent, "scratch", "checkpoint error", "scratch"},
      {State::empty, "scratch", "checkpoint error", "scratch"},
      {State::unlogged, "scratch", "checkpoint error", "scratch"},
      {State::logged, "checkpoint error", "checkpoint error", "scratch"},
      {State::unfinished, "checkpoint error", "checkpoint error", "scratch"},
      {State::invalid, "checkpoint error", "checkpoint error", "config error"},
      {State::foreign, "checkpoint error", "checkpoint error", "config error"},
      {State::valid, "resume", "resume", "config error"},
      {State::early_logged, "scratch", "checkpoint error", "scratch"},
      {State::early_unfinished, "scratch", "checkpoint error", "scratch"},
      {State::early_invalid, "checkpoint error", "checkpoint error", "config error"},
      {State::early_valid, "resume", "resume", "config error"},
  };
  for (const Row& row : rows) {
    const TemporaryDirectory directory;
    make_state(directory, row.state);
    const fs::path run_dir = directory.path() / "run";
    const int state = static_cast<int>(row.state);
    EXPECT_EQ(outcome(run_dir, Resume::automatic), row.automatic) << "state " << state;
    EXPECT_EQ(outcome(run_dir, Resume::required), row.required) << "state " << state;
    EXPECT_EQ(outcome(run_dir, Resume::never), row.never) << "state " << state;
  }
}

TEST(Store, RefusesARunDirectoryThatIsAFile) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("run", "x");
  EXPECT_TRUE(follows_grammar(error_text<CheckpointError>([&] { find_newest_valid(path); })));
}

std::set<std::string> entries(const fs::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    names.insert(entry.path().filename());
  }
  return names;
}

Standing counts(const fs::path& /*checkpoint*/) {
  return Standing::counts;
}

TEST(Store, PruneKeepsTheNewestOnes) {
  const TemporaryDirectory directory;
  for (const std::int64_t step : {10, 20, 30, 40}) {
    save(directory.path(), step);
  }
  directory.write("metrics.jsonl", "{}\n");
  prune(directory.path(), KeepRule{4}, counts);
  EXPECT_EQ(entries(directory.path()).size(), 5U);
  prune(directory.path(), KeepRule{2}, counts);
  EXPECT_EQ(entries(directory.path()),
            (std::set<std::string>{"metrics.jsonl", "step-00000030", "step-00000040"}));
  prune(directory.path(), KeepRule{1}, counts);
  prune(directory.path(), KeepRule{1}, counts);
  EXPECT_EQ(entries(directory.path()), (std::set<std::string>{"metrics.jsonl", "step-00000040"}));
  EXPECT_TRUE(find_newest_valid(directory.path()).newest);
  EXPECT_THROW(prune(directory.path(), KeepRule{0}, counts), ContractError);
}

TEST(Store, PruneKeepsTheFirstFromEachMultipleForEver) {
  const TemporaryDirectory directory;
  // By the clock: no step is a multiple but 200.
  for (const std::int64_t step : {7, 90, 130, 180, 200, 260, 410, 490, 520}) {
    save(directory.path(), step);
  }
  // 410 is another run's: 490 is the first of this one from 400 on.
  const auto judge = [](const fs::path& checkpoint) {
    return checkpoint.filename() == "step-00000410" ? Standing::foreign : Standing::counts;
  };
  for (int again = 0; again < 2; ++again) {
    prune(directory.path(), {.newest = 1, .every = 100}, judge);
    EXPECT_EQ(
        entries(directory.path()),
        (std::set<std::string>{
            "step-00000130", "step-00000200", "step-00000410", "step-00000490", "step-00000520"}));
  }
}

TEST(Store, PruneDeletesNothingWhileTheNewestIsNotValid) {
  for (const Damage& damage : damages()) {
    const TemporaryDirectory directory;
    save(directory.path(), 10);
    damage.inflict(save(directory.path(), 20));
    prune(directory.path(), KeepRule{1}, counts);
    const Scan scan = find_newest_valid(directory.path());
    ASSERT_TRUE(scan.newest) << damage.name;
    EXPECT_EQ(scan.newest->manifest.step, 10) << damage.name;
  }
}

TEST(Store, PruneDoesNotCountWhatHasNoMarker) {
  const TemporaryDirectory directory;
  save(directory.path(), 10);
  fs::remove(save(directory.path(), 20) / "COMMIT");
  save(directory.path(), 30);
  prune(directory.path(), KeepRule{2}, counts);
  EXPECT_EQ(entries(directory.path()), (std::set<std::string>{"step-00000010", "step-00000030"}));
}

TEST(Store, PruneOfALinkLeavesWhatItPointsAt) {
  const TemporaryDirectory directory;
  const fs::path archived = save(directory.path() / "archive", 10);
  fs::create_directory(directory.path() / "run");
  fs::create_directory_symlink(archived, directory.path() / "run" / "step-00000010");
  save(directory.path() / "run", 20);
  prune(directory.path() / "run", KeepRule{1}, counts);
  EXPECT_EQ(entries(directory.path() / "run"), std::set<std::string>{"step-00000020"});
  EXPECT_TRUE(verify_checkpoint(archived).manifest);
}

TEST(Store, PruneLeavesForeignOnesAndCountsNoSpareOnes) {
  const TemporaryDirectory directory;
  for (const std::int64_t step : {10, 20, 30, 40, 50, 60, 70}) {
    save(directory.path(), step);
  }
  const auto judge = [](const fs::path& checkpoint) {
    const std::string name = checkpoint.filename();
    return name == "step-00000020" || name == "step-00000060"   ? Standing::foreign
           : name == "step-00000040" || name == "step-00000050" ? Standing::spare
                                                                : Standing::counts;
  };
  prune(directory.path(), KeepRule{2}, judge);
  EXPECT_EQ(
      entries(directory.path()),
      (std::set<std::string>{"step-00000020", "step-00000030", "step-00000060", "step-00000070"}));
}

TEST(Store, PruneDeletesNothingForANewestThatDoesNotCount) {
  for (const Standing newest : {Standing::spare, Standing::foreign}) {
    const TemporaryDirectory directory;
    for (const std::int64_t step : {10, 20, 30}) {
      save(directory.path(), step);
    }
    prune(directory.path(), KeepRule{1}, [&](const fs::path& checkpoint) {
      return checkpoint.filename() == "step-00000030" ? newest : Standing::counts;
    });
    EXPECT_EQ(entries(directory.path()).size(), 3U);
  }
}

// For a while a user who may not read what others have written. Root may read everything.
class AsNobody {
 public:
  AsNobody() : own_(::geteuid()) {
    constexpr uid_t kNobody = 65534;
    if (own_ == 0 && ::seteuid(kNobody) != 0) {
      ADD_FAILURE() << "cannot become another user";
    }
  }
  ~AsNobody() {
    if (::seteuid(own_) != 0) {
      ::_exit(1);  // the rest of the tests would be another user's
    }
  }
  AsNobody(const AsNobody&) = delete;
  AsNobody& operator=(const AsNobody&) = delete;

 private:
  uid_t own_;
};

// To go on from an older one would be to write over the newer one, which may be whole.
TEST(Store, ACheckpointThatMayNotBeReadIsNotTakenForADamagedOne) {
  for (const char* entry : {"", "COMMIT", "manifest.json", "model.safetensors"}) {
    const TemporaryDirectory directory;
    fs::permissions(directory.path(), fs::perms::owner_all | fs::perms::others_all);
    for (const std::int64_t step : {10, 20}) {
      fs::permissions(save(directory.path(), step), fs::perms::all);
      for (const auto& file : fs::directory_iterator(directory.path() / checkpoint_name(step))) {
        fs::permissions(file.path(), fs::perms::all);
      }
    }
    const fs::path closed = directory.path() / "step-00000020" / entry;
    fs::permissions(closed, fs::perms::none);
    {
      const AsNobody nobody;
      for (const auto& body : std::vector<std::function<void()>>{
               [&] { choose_checkpoint(directory.path(), Resume::automatic); },
               [&] { find_newest_valid(directory.path()); },
               [&] { CheckpointWriter(directory.path(), 20); }}) {
        const std::string text = error_text<CheckpointError>(body);
        EXPECT_NE(text.find("ermission denied"), std::string::npos) << text;
        EXPECT_TRUE(follows_grammar(text));
      }
    }
    fs::permissions(closed, fs::perms::owner_all);
    EXPECT_EQ(find_newest_valid(directory.path()).newest->manifest.step, 20);
  }
}

TEST(Store, SaysHowMuchSpaceIsMissing) {
  const TemporaryDirectory directory;
  require_space(directory.path() / "not" / "yet" / "there", 1000);
  const std::uint64_t huge = std::uint64_t{1} << 60U;
  const std::string text =
      error_text<PreflightError>([&] { require_space(directory.path() / "run", huge); });
  EXPECT_NE(text.find(std::to_string(2 * huge + (64U << 20U)) + " are needed"), std::string::npos)
      << text;
  EXPECT_NE(text.find(directory.path().string() + " has "), std::string::npos) << text;
  EXPECT_TRUE(follows_grammar(text));
}

}  // namespace
}  // namespace memphis
