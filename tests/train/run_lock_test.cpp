// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/run_lock.h"

#include <chrono>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "csrc/checkpoint/store.h"
#include "csrc/comm/activity.h"
#include "csrc/core/error.h"
#include "csrc/train/trainer.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

constexpr std::chrono::milliseconds kShort{200};
constexpr std::chrono::seconds kLong{60};

// Another process that has the lock until it is killed.
class Holder {
 public:
  explicit Holder(const std::filesystem::path& run_dir) {
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    process_ = ::fork();
    if (process_ == 0) {
      const RunLock lock(run_dir);
      (void)!::write(ready[1], "", 1);
      while (true) {
        ::pause();
      }
    }
    char byte = 0;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    ::close(ready[0]);
    ::close(ready[1]);
  }
  ~Holder() {
    kill();
    ::waitpid(process_, nullptr, 0);
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

  void kill() const { ::kill(process_, SIGKILL); }
  pid_t process() const { return process_; }

 private:
  pid_t process_ = 0;
};

TEST(RunLock, KeepsAnotherJobOutAndNamesItself) {
  const TemporaryDirectory directory;
  const Holder holder(directory.path());
  const std::string text = error_text<PreflightError>(
      [&] { const RunLock lock(directory.path(), {.here = kShort, .elsewhere = kLong}); });
  EXPECT_NE(
      text.find("is in use by process " + std::to_string(holder.process()) + " on " + host_name()),
      std::string::npos)
      << text;
  EXPECT_TRUE(follows_grammar(text));
}

TEST(RunLock, IsFreeOnceItsProcessIsKilled) {
  const TemporaryDirectory directory;
  const Holder holder(directory.path());
  std::thread killer([&] {
    std::this_thread::sleep_for(kShort);
    holder.kill();
  });
  EXPECT_NO_THROW(RunLock(directory.path(), {.here = kLong, .elsewhere = kShort}));
  killer.join();
}

TEST(RunLock, IsFreeOnceItGoes) {
  const TemporaryDirectory directory;
  for (int i = 0; i < 2; ++i) {
    EXPECT_NO_THROW(RunLock(directory.path(), {.here = kShort, .elsewhere = kShort}));
  }
}

TEST(RunLock, KnowsWhereItsDirectoryWasDeletedMovedOrReplaced) {
  namespace fs = std::filesystem;
  const TemporaryDirectory directory;
  const fs::path run_dir = directory.path() / "run";
  const fs::path moved = directory.path() / "moved";
  fs::create_directory(run_dir);
  const RunLock lock(run_dir);
  EXPECT_NO_THROW(lock.require_held());
  fs::rename(run_dir, moved);
  const std::string gone = error_text<PreflightError>([&] { lock.require_held(); });
  EXPECT_NE(gone.find("lock is gone"), std::string::npos) << gone;
  EXPECT_TRUE(follows_grammar(gone)) << gone;
  {
    fs::create_directory(run_dir);
    const RunLock other(run_dir);  // which nothing keeps out
    const std::string replaced = error_text<PreflightError>([&] { lock.require_held(); });
    EXPECT_NE(replaced.find("lock is another file"), std::string::npos) << replaced;
    EXPECT_TRUE(follows_grammar(replaced)) << replaced;
  }
  fs::remove_all(run_dir);
  fs::rename(moved, run_dir);
  EXPECT_NO_THROW(lock.require_held()) << "it is back";
}

// Whoever deletes the file of a lock lets two jobs in: one waits for a file that has no name any
// more.
TEST(RunLock, IsOfTheFileThatThePathNames) {
  const TemporaryDirectory directory;
  const Holder holder(directory.path());
  std::thread killer([&] {
    std::this_thread::sleep_for(kShort);
    std::filesystem::remove(directory.path() / "lock");
    holder.kill();
  });
  const RunLock lock(directory.path(), {.here = kLong, .elsewhere = kShort});
  killer.join();
  EXPECT_NO_THROW(lock.require_held());
  EXPECT_TRUE(RunLock::owner(directory.path()).has_value());
}

// It would save where another job may be, without a lock, a config or metrics of its own.
TEST(RunLock, AJobDoesNotOutliveItsDirectory) {
  namespace fs = std::filesystem;
  const TemporaryDirectory directory;
  const Config config = tiny_config(directory,
                                    {"schedule.steps=1000000",
                                     "checkpoint.every=5",
                                     "checkpoint.max_failures=1000",
                                     "metrics.every=1000000"});
  const fs::path run_dir = config.run.dir;
  const fs::path moved = directory.path() / "moved";
  Trainer trainer(config, {});
  std::thread mover([&] {
    while (newest_step(run_dir) < 5) {  // which may be later than 5 by now
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    fs::rename(run_dir, moved);
  });
  const std::string text = error_text<PreflightError>([&] { trainer.run(); });
  mover.join();
  EXPECT_NE(text.find("is not the directory that this job has locked"), std::string::npos) << text;
  EXPECT_FALSE(fs::exists(run_dir)) << "nothing is made in its place";
  EXPECT_GE(newest_step(moved), 5);
}

// It would save over what the first one has, from weights that are older.
TEST(RunLock, AJobDoesNotStartBehindOneThatWentOnMeanwhile) {
  const TemporaryDirectory directory;
  const Config config = tiny_config(directory, {"schedule.steps=10"});
  Trainer first(config, {});
  Trainer second(config, {});
  first.run();
  const std::string text = error_text<PreflightError>([&] { second.run(); });
  EXPECT_NE(text.find("has gone on to step 10"), std::string::npos) << text;
  EXPECT_TRUE(follows_grammar(text));
  first.run();  // has nothing to do, and is not in its own way
}

}  // namespace
}  // namespace memphis::test
