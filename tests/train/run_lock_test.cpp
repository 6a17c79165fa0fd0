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
