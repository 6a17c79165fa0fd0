// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/writer.h"

#include <array>
#include <csignal>
#include <set>

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "csrc/checkpoint/store.h"
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

constexpr std::int64_t kFirst = 10;
constexpr std::int64_t kSecond = 20;

Manifest manifest_of(std::int64_t step) {
  return {
      .step = 0,
      .samples = 16 * step,
      .seed = 7,
      .dataset_fingerprint = "abc",
      .config = "model: {preset: grok-1}\n",
      .files = {},
  };
}

fs::path save(const fs::path& run_dir,
              std::int64_t step,
              const CheckpointWriter::Observer& observer = {}) {
  CheckpointWriter writer(run_dir, step, observer);
  writer.add_tensors("model.safetensors",
                     std::vector{source<float>("w", {8}, ramp(8, static_cast<float>(step))),
                                 source<float>("b", {4}, ramp(4))});
  writer.add_tensors("optimizer.safetensors", std::vector{source<float>("m", {8}, ramp(8))});
  return writer.commit(manifest_of(step));
}

// What the run directory holds, newest valid first, must always be one of the two saves, whole.
std::int64_t newest_step(const fs::path& run_dir) {
  const Scan scan = find_newest_valid(run_dir);
  if (!scan.newest) {
    return -1;
  }
  const std::int64_t step = scan.newest->manifest.step;
  EXPECT_EQ(scan.newest->manifest.samples, 16 * step);
  float first = 0;
  SafetensorsFile(scan.newest->path / "model.safetensors")
      .read("w", std::vector<std::int64_t>{8}, 0, 1, DType::f32, &first);
  EXPECT_EQ(first, static_cast<float>(step));
  return step;
}

std::set<std::string> entries(const fs::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    names.insert(entry.path().filename());
  }
  return names;
}

// Runs `body` in a child process, without gtest's exit handlers, and returns how it ended.
int status_of_child(const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      body();
    } catch (const CheckpointError&) {
      ::_exit(4);
    } catch (...) {
      ::_exit(1);
    }
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(CheckpointWriter, SavesWhatIsFoundAgain) {
  const TemporaryDirectory directory;
  const fs::path path = save(directory.path() / "deep" / "run", kFirst);
  EXPECT_EQ(path, directory.path() / "deep" / "run" / "step-00000010");
  EXPECT_EQ(entries(path),
            (std::set<std::string>{
                "COMMIT", "manifest.json", "model.safetensors", "optimizer.safetensors"}));
  const Verdict verdict = verify_checkpoint(path);
  ASSERT_TRUE(verdict.manifest) << verdict.reason;
  Manifest expected = manifest_of(kFirst);
  expected.step = kFirst;
  expected.files = verdict.manifest->files;
  EXPECT_EQ(*verdict.manifest, expected);
  EXPECT_EQ(verdict.manifest->files.size(), 2U);
  EXPECT_EQ(read_text(path / "COMMIT"),
            checksum_text(checksum_of(read_text(path / "manifest.json"))) + "\n");
}

// The child is killed, as by the machine, at each change of the disk in turn; then the run goes on.
TEST(CheckpointWriter, AKillAtAnyInstantLeavesTheOldOrTheNew) {
  int num_instants = 0;
  bool was_killed = true;
  for (int instant = 0; was_killed; ++instant) {
    const TemporaryDirectory directory;
    save(directory.path(), kFirst);
    std::string place = "none";
    const int status = status_of_child([&] {
      int seen = 0;
      save(directory.path(), kSecond, [&](std::string_view) {
        if (seen++ == instant) {
          ::kill(::getpid(), SIGKILL);
        }
      });
    });
    was_killed = WIFSIGNALED(status);
    if (was_killed) {
      EXPECT_EQ(WTERMSIG(status), SIGKILL);
      ++num_instants;
    } else {
      EXPECT_EQ(WEXITSTATUS(status), 0);
      EXPECT_EQ(newest_step(directory.path()), kSecond);
    }
    const std::int64_t found = newest_step(directory.path());
    EXPECT_TRUE(found == kFirst || found == kSecond) << "killed at instant " << instant;
    EXPECT_TRUE(verify_checkpoint(directory.path() / "step-00000010").manifest);
    if (found == kFirst) {
      save(directory.path(), kSecond);
    }
    EXPECT_EQ(newest_step(directory.path()), kSecond);
    EXPECT_EQ(entries(directory.path()), (std::set<std::string>{"step-00000010", "step-00000020"}))
        << "killed at instant " << instant;
  }
  // 1 directory, 2 files of 3 + 2 and 3 pieces, manifest, flush, rename, flush, marker, record,
  // done.
  EXPECT_EQ(num_instants, 1 + 2 + 5 + 3 + 7);
}

TEST(CheckpointWriter, AKillAtAnyInstantOfTheFirstSaveLeavesARunThatGoesOn) {
  bool was_killed = true;
  for (int instant = 0; was_killed; ++instant) {
    const TemporaryDirectory directory;
    note_nothing_saved(directory.path());
    directory.write("metrics.jsonl", "{}\n");
    was_killed = WIFSIGNALED(status_of_child([&] {
      int seen = 0;
      save(directory.path(), kFirst, [&](std::string_view) {
        if (seen++ == instant) {
          ::kill(::getpid(), SIGKILL);
        }
      });
    }));
    EXPECT_NO_THROW({
      const auto found = choose_checkpoint(directory.path(), Resume::automatic);
      if (!found) {
        save(directory.path(), kFirst);
      }
    }) << "killed at instant "
       << instant;
    EXPECT_EQ(newest_step(directory.path()), kFirst);
  }
}

// A job that ends at any instant of its first save is one that never saved, or has a checkpoint: the
// record that nothing was saved goes when the marker is there, and never before.
TEST(CheckpointWriter, TheFirstSaveLeavesTheRecordOfNothingSavedOrACheckpoint) {
  struct Stop {};
  bool stopped = true;
  for (int instant = 0; stopped; ++instant) {
    const TemporaryDirectory directory;
    note_nothing_saved(directory.path());
    int seen = 0;
    stopped = false;
    bool committed = false;
    try {
      save(directory.path(), kFirst, [&](std::string_view place) {
        committed = committed || place == "remove record";
        EXPECT_EQ(fs::exists(directory.path() / kNothingSavedName), place != "done") << place;
        if (seen++ == instant) {
          throw Stop();
        }
      });
      EXPECT_FALSE(fs::exists(directory.path() / kNothingSavedName));
    } catch (const Stop&) {
      stopped = true;
    }
    EXPECT_EQ(choose_checkpoint(directory.path(), Resume::automatic).has_value(), committed);
  }
}

TEST(CheckpointWriter, AnExceptionAtAnyInstantLeavesNothingBehind) {
  struct Stop {};
  for (int instant = 0;; ++instant) {
    const TemporaryDirectory directory;
    save(directory.path(), kFirst);
    int seen = 0;
    bool committed = false;
    try {
      save(directory.path(), kSecond, [&](std::string_view place) {
        committed = committed || place == "remove record";
        if (seen++ == instant) {
          throw Stop();
        }
      });
      break;
    } catch (const Stop&) {
    }
    EXPECT_EQ(newest_step(directory.path()), committed ? kSecond : kFirst);
    EXPECT_EQ(entries(directory.path()).size(), committed ? 2U : 1U) << "at instant " << instant;
  }
}

// A file may grow to `limit` bytes: what a full disk does, at a byte that the test chooses.
void limit_file_size(rlim_t limit) {
  ::signal(SIGXFSZ, SIG_IGN);  // so that write() fails instead
  const rlimit limits{limit, limit};
  if (::setrlimit(RLIMIT_FSIZE, &limits) != 0) {
    ::_exit(1);
  }
}

TEST(CheckpointWriter, AFullDiskKeepsTheOldAndRemovesThePart) {
  const TemporaryDirectory sizes;
  const fs::path whole = save(sizes.path(), kSecond);
  const auto largest =
      std::max(fs::file_size(whole / "model.safetensors"), fs::file_size(whole / "manifest.json"));
  for (rlim_t limit = 0; limit <= largest; limit += 13) {
    const TemporaryDirectory directory;
    save(directory.path(), kFirst);
    const int status = status_of_child([&] {
      limit_file_size(limit);
      save(directory.path(), kSecond);
    });
    const bool fits = limit >= largest;
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), fits ? 0 : 4) << "at " << limit << " bytes";
    EXPECT_EQ(newest_step(directory.path()), fits ? kSecond : kFirst);
    EXPECT_EQ(entries(directory.path()).size(), fits ? 2U : 1U) << "at " << limit << " bytes";
  }
}

TEST(CheckpointWriter, ADiskThatFillsAtTheMarkerKeepsTheOldAndRemovesTheRest) {
  for (rlim_t limit = 0; limit < 17; ++limit) {  // a marker has 17 bytes
    const TemporaryDirectory directory;
    save(directory.path(), kFirst);
    const int status = status_of_child([&] {
      save(directory.path(), kSecond, [&](std::string_view place) {
        if (place == "write marker") {
          limit_file_size(limit);
        }
      });
    });
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 4);
    EXPECT_EQ(newest_step(directory.path()), kFirst);
    EXPECT_EQ(entries(directory.path()), std::set<std::string>{"step-00000010"});
  }
}

TEST(CheckpointWriter, ReplacesAnInvalidOneOfTheSameStepAndRefusesAValidOne) {
  const TemporaryDirectory directory;
  const fs::path path = save(directory.path(), kFirst);
  const std::string text =
      error_text<CheckpointError>([&] { CheckpointWriter writer(directory.path(), kFirst); });
  EXPECT_EQ(text,
            path.string() +
                " is there already and valid (saved work is not written over); resume from "
                "it, or choose another run.dir");
  EXPECT_TRUE(verify_checkpoint(path).manifest);
  fs::remove(path / "COMMIT");
  save(directory.path(), kFirst);
  EXPECT_TRUE(verify_checkpoint(path).manifest);
}

TEST(CheckpointWriter, TakesFilesThatOthersWrote) {
  const TemporaryDirectory directory;
  CheckpointWriter writer(directory.path(), kFirst);
  const FileRecord record = write_safetensors(writer.directory() / "rank-1.safetensors",
                                              std::vector{source<float>("m", {8}, ramp(8))});
  writer.add_file(record);
  const fs::path path = writer.commit(manifest_of(kFirst));
  const Verdict verdict = verify_checkpoint(path);
  ASSERT_TRUE(verdict.manifest) << verdict.reason;
  EXPECT_EQ(verdict.manifest->files, std::vector{record});
}

TEST(CheckpointWriter, RefusesNamesThatAReaderWouldRefuse) {
  const TemporaryDirectory directory;
  CheckpointWriter writer(directory.path(), kFirst);
  const std::vector tensors{source<float>("m", {1}, {1})};
  for (const char* name : {"../m", "a/b", "", ".hidden", "COMMIT", "manifest.json", "m\n"}) {
    EXPECT_THROW(writer.add_tensors(name, tensors), ContractError) << name;
    EXPECT_THROW(writer.add_file({.name = name}), ContractError) << name;
  }
  writer.add_tensors("m", tensors);
  EXPECT_THROW(writer.add_tensors("m", tensors), ContractError);
}

TEST(CheckpointWriter, KeepsItsFilesFromOthers) {
  const TemporaryDirectory directory;
  const fs::path path = save(directory.path(), kFirst);
  EXPECT_EQ(fs::status(path).permissions() & fs::perms::others_all, fs::perms::none);
  EXPECT_EQ(fs::status(path / "model.safetensors").permissions() & fs::perms::others_all,
            fs::perms::none);
}

TEST(CheckpointWriter, NamesWhatItCannotWrite) {
  const TemporaryDirectory directory;
  directory.write("file", "x");
  EXPECT_TRUE(follows_grammar(error_text<CheckpointError>(
      [&] { CheckpointWriter writer(directory.path() / "file" / "run", kFirst); })));
}

}  // namespace
}  // namespace memphis
