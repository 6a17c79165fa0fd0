// SPDX-License-Identifier: Apache-2.0
//
// What surrounds a run that goes wrong: signals at any time, a log that nobody reads, files that may
// not grow. And what it makes of text that a terminal would obey.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include "csrc/checkpoint/store.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

class Interruption : public testing::Test {
 protected:
  using Arguments = std::vector<std::string>;

  Interruption() { config_ = directory_.write("tiny.yaml", tiny_yaml(directory_)); }

  std::string path(const std::string& name) const { return (directory_.path() / name).string(); }
  Arguments train(const std::string& run_dir, const Arguments& more = {}) const {
    Arguments arguments = {MEMPHIS_BINARY, "train", config_, "run.dir=" + path(run_dir)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  Ended run(const Arguments& arguments) const { return run_to_end(arguments, directory_.path()); }
  // `script` has the words of `arguments` as "$@".
  Ended shell(const std::string& script, const Arguments& arguments) const {
    Arguments all = {"/bin/bash", "-c", script, "bash"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return run(all);
  }
  // Sends `signal` to a run once `when` holds.
  Ended interrupt(const Arguments& arguments,
                  int signal,
                  const std::function<bool(Process&)>& when) const {
    Process process(arguments, directory_.path());
    while (process.running() && !when(process)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    process.send(signal);
    return end_of(process);
  }
  // Steps of metrics.jsonl whose line has `key`.
  std::vector<std::int64_t> steps_with(const std::string& run_dir, const std::string& key) const {
    std::vector<std::int64_t> steps;
    std::ifstream file(path(run_dir) + "/metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      const auto object = parse_json(line).value();
      if (object.contains(key)) {
        steps.push_back(object["step"]);
      }
    }
    return steps;
  }
  bool is_saved(const std::string& run_dir, const std::string& step) const {
    return fs::exists(path(run_dir) + "/" + step + "/COMMIT");
  }
  void expect_same_end(const std::string& a, const std::string& b, std::int64_t step = 40) const {
    const std::string checkpoint = "/" + checkpoint_name(step) + "/";
    for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
      EXPECT_EQ(read_text(path(a) + checkpoint + file), read_text(path(b) + checkpoint + file))
          << file;
    }
  }
  // A run goes on for some steps, to the bits of one that nothing happened to.
  void expect_goes_on_as_one(const std::string& run_dir) const {
    const std::int64_t last = newest_step(path(run_dir)) + 20;
    EXPECT_EQ(run(train(run_dir, until_step(last))).code, 0);
    EXPECT_EQ(run(train("whole", until_step(last))).code, 0);
    expect_same_end("whole", run_dir, last);
  }

  TemporaryDirectory directory_;
  std::string config_;
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// More than a machine validates, or writes as a sample, while a test waits: if the pass were not
// given up the test would run into its time limit.
TEST_F(Interruption, AValidationIsGivenUpAndDoneByTheNextStart) {
  std::string text;
  for (int i = 0; i < 2000; ++i) {
    text += tiny_text();
  }
  const std::string validation = "data.validation=[" + directory_.write("large.txt", text) + "]";
  const Arguments few = {validation, "metrics.validate_batches=2"};
  ASSERT_EQ(run(train("whole", few)).code, 0);
  const auto stop_at = [&](const std::string& run_dir, const std::string& step, Arguments more) {
    more.push_back(validation);
    const Ended stopped = interrupt(train(run_dir, more), SIGTERM, [&](const Process& process) {
      return contains(process.standard_error(), "step " + step + "/40");
    });
    EXPECT_EQ(stopped.code, 10) << stopped.error;
    EXPECT_TRUE(contains(stopped.error, "after step " + step)) << stopped.error;
    EXPECT_TRUE(is_saved(run_dir, "step-000000" + step));
    EXPECT_TRUE(steps_with(run_dir, "validation_loss").empty());
    more.push_back("metrics.validate_batches=2");
    const Ended again = run(train(run_dir, more));
    EXPECT_EQ(again.code, 0) << again.error;
  };
  stop_at("amid", "20", {});
  EXPECT_EQ(steps_with("amid", "validation_loss"), (std::vector<std::int64_t>{20, 40}));
  expect_same_end("whole", "amid");
  stop_at("at-the-end", "40", {"metrics.validate_every=0"});
  EXPECT_EQ(steps_with("at-the-end", "validation_loss"), (std::vector<std::int64_t>{40}));
  const Ended nothing = run(train("at-the-end", few));
  EXPECT_TRUE(contains(nothing.error, "nothing to do")) << nothing.error;
}

TEST_F(Interruption, ASampleIsGivenUpAndWrittenByTheNextStart) {
  // Without chance no end of a document comes out, which would end the sample.
  const Arguments endless = {"metrics.sample_every=20",
                             "metrics.sample_tokens=1048576",
                             "metrics.sample_temperature=0",
                             "metrics.validate_every=0"};
  const Ended stopped = interrupt(train("run", endless), SIGTERM, [](const Process& process) {
    return contains(process.standard_error(), "step 20/40");
  });
  EXPECT_EQ(stopped.code, 10) << stopped.error;
  EXPECT_TRUE(is_saved("run", "step-00000020"));
  EXPECT_TRUE(steps_with("run", "sample").empty());
  const Ended again = run(train(
      "run", {"metrics.sample_every=20", "metrics.sample_tokens=5", "metrics.validate_every=0"}));
  EXPECT_EQ(again.code, 0) << again.error;
  EXPECT_EQ(steps_with("run", "sample"), (std::vector<std::int64_t>{20, 40}));
}

TEST_F(Interruption, AHangupSavesUnlessItIsIgnored) {
  const auto started = [&](const char* run_dir) {
    return [=, this](const Process&) {
      std::error_code error;
      return fs::file_size(path(run_dir) + "/metrics.jsonl", error) > 0 && !error;
    };
  };
  const Ended stopped = interrupt(train("run", {"schedule.steps=1000000"}), SIGHUP, started("run"));
  EXPECT_EQ(stopped.code, 10) << stopped.error;
  EXPECT_TRUE(contains(stopped.error, "Hangup")) << stopped.error;
  Arguments ignoring = {"/bin/bash", "-c", "trap '' HUP; exec \"$@\"", "bash"};
  for (const std::string& word : train("ignoring", endless())) {
    ignoring.push_back(word);
  }
  std::int64_t step_of_hangup = -1;
  const Ended ended = interrupt(ignoring, SIGTERM, [&](Process& process) {
    if (step_of_hangup < 0 && started("ignoring")(process)) {
      process.send(SIGHUP);
      step_of_hangup = std::max<std::int64_t>(newest_step(path("ignoring")), 0);
    }
    return step_of_hangup >= 0 && newest_step(path("ignoring")) > step_of_hangup;
  });
  EXPECT_EQ(ended.code, 10) << ended.error;
  EXPECT_TRUE(contains(ended.error, "Terminated")) << ended.error;
  EXPECT_FALSE(contains(ended.error, "Hangup")) << ended.error;
}

// Here it waits for another job, which has run.dir.
TEST_F(Interruption, BeforeTheFirstStepEndsAtOnce) {
  fs::create_directories(path("run"));
  const std::string lock = path("run") + "/lock";
  const int descriptor = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::flock(descriptor, LOCK_EX), 0);
  const Ended stopped =
      interrupt(train("run", {"run.resume=never"}), SIGTERM, [](const Process& process) {
        return contains(process.standard_error(), "is in use by");
      });
  ::close(descriptor);
  EXPECT_EQ(stopped.code, 10) << stopped.error;
  EXPECT_TRUE(contains(stopped.error, "before its first step")) << stopped.error;
  EXPECT_EQ(run(train("run", {"run.resume=never"})).code, 0);
}

TEST_F(Interruption, ALogThatNobodyReadsIsAllThatIsLost) {
  const Ended ended = shell("\"$@\" 2>&1 | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}",
                            train("run", {"metrics.every=1"}));
  EXPECT_EQ(ended.code, 0) << ended.error;
  EXPECT_TRUE(is_saved("run", "step-00000040"));
  EXPECT_EQ(steps_with("run", "loss").size(), 40U);
}

TEST_F(Interruption, ACheckpointThatMayNotGrowIsRefusedAndTheLastOneStays) {
  ASSERT_EQ(run(train("run", until_step(20))).code, 0);
  const Ended refused = shell("ulimit -f 32; exec \"$@\"", train("run", endless()));
  EXPECT_EQ(refused.code, 4) << refused.error;
  EXPECT_TRUE(contains(refused.error, "safetensors (File too large)")) << refused.error;
  EXPECT_TRUE(contains(refused.error, "ulimit -f")) << refused.error;
  EXPECT_TRUE(contains(refused.error, "metrics.jsonl (File too large)")) << refused.error;
  EXPECT_TRUE(is_saved("run", "step-00000020"));
  EXPECT_EQ(find_newest_valid(path("run")).newest->manifest.step, 20);
  expect_goes_on_as_one("run");
}

// A disk may be full for a while: what fails is said, and the run goes on for as long as it was told to.
TEST_F(Interruption, ASaveThatFailsIsForgivenSoManyTimes) {
  const auto forgiven = [&](const std::string& run_dir, int max_failures) {
    const Ended ended = shell(
        "ulimit -f 32; exec \"$@\"",
        train(run_dir,
              {"checkpoint.every=2", "checkpoint.max_failures=" + std::to_string(max_failures)}));
    EXPECT_EQ(ended.code, 4) << ended.error;
    EXPECT_TRUE(contains(ended.error, "safetensors (File too large)")) << ended.error;
    EXPECT_FALSE(is_saved(run_dir, "step-00000002"));
    int count = 0;
    const std::string said = "a checkpoint is not saved, and training goes on";
    for (std::size_t at = 0; (at = ended.error.find(said, at)) != std::string::npos; ++at) {
      ++count;
    }
    return count;
  };
  EXPECT_EQ(forgiven("never", 0), 0);
  EXPECT_EQ(forgiven("twice", 2), 2);
  EXPECT_EQ(run(train("twice")).code, 0) << "nothing was saved: it starts over";
}

// The steps since the last checkpoint are worth more than their lines.
TEST_F(Interruption, MetricsThatCannotBeWrittenEndTheRunOnceItIsSaved) {
  ASSERT_EQ(run(train("run", until_step(20))).code, 0);
  {
    // Lines of an early step, until the file has room for those of a few steps more.
    constexpr std::uintmax_t kLimit = std::uintmax_t{1} << 20;
    constexpr std::uintmax_t kRoom = 5000;
    const std::string metrics_path = path("run") + "/metrics.jsonl";
    std::uintmax_t size = fs::file_size(metrics_path);
    std::ofstream metrics(metrics_path, std::ios::app);
    const std::string line = "{\"step\":1,\"note\":\"" + std::string(1000, 'x') + "\"}\n";
    for (; size + kRoom < kLimit; size += line.size()) {
      metrics << line;
    }
  }
  const Ended stopped = shell("ulimit -f 1024; exec \"$@\"", train("run", endless()));
  EXPECT_EQ(stopped.code, 5) << stopped.error;
  EXPECT_TRUE(contains(stopped.error, "metrics.jsonl (File too large)")) << stopped.error;
  EXPECT_GT(newest_step(path("run")), 20);
  expect_goes_on_as_one("run");
}

TEST_F(Interruption, WhatATerminalWouldObeyIsEscapedInTheLog) {
  const Ended ended = run(train("run",
                                {"metrics.sample_every=20",
                                 "metrics.sample_tokens=40",
                                 "metrics.sample_prompt=\"\\e[31mred\\n\""}));
  ASSERT_EQ(ended.code, 0) << ended.error;
  EXPECT_FALSE(contains(ended.error, "\x1b"));
  EXPECT_TRUE(contains(ended.error, "\\u001b[31mred\\n")) << ended.error;
  const Ended refused = run({MEMPHIS_BINARY, "train", path("\x1b[2J\xff.yaml")});
  EXPECT_EQ(refused.code, 2) << refused.error;
  EXPECT_TRUE(contains(refused.error, "\\u001b[2J\\xff.yaml")) << refused.error;
  const Ended unknown = run({MEMPHIS_BINARY, "plan", config_, "--\x1b[2J"});
  EXPECT_EQ(unknown.code, 2) << unknown.error;
  EXPECT_FALSE(contains(unknown.error, "\x1b")) << unknown.error;
}

TEST_F(Interruption, GeneratedTextIsEscapedOnATerminalAlone) {
  ASSERT_EQ(run(train("run", {"metrics.validate_every=0"})).code, 0);
  const Arguments generate = {
      MEMPHIS_BINARY, "generate", path("run"), "--prompt", "\x1b[31mred", "--tokens", "3"};
  EXPECT_TRUE(contains(run(generate).out, "\x1b[31mred"));
  const Ended shown = shell(
      "printf -v command '%q ' \"$@\"; SHELL=$BASH "  // which these quotes are of
      "script --quiet --return --command \"$command\" /dev/null",
      generate);
  EXPECT_EQ(shown.code, 0) << shown.error;
  EXPECT_TRUE(contains(shown.out, "\\u001b[31mred")) << shown.out;
  EXPECT_FALSE(contains(shown.out, "\x1b[31m")) << shown.out;
}

TEST_F(Interruption, OutputThatIsLostIsAnError) {
  const Ended ended = shell("exec \"$@\" >/dev/full", {MEMPHIS_BINARY, "plan", config_});
  EXPECT_EQ(ended.code, 5) << ended.error;
  EXPECT_TRUE(contains(ended.error, "standard output (No space left on device)")) << ended.error;
}

TEST_F(Interruption, ANumberOfThreadsThatIsAMistakeIsRefused) {
  for (const char* command : {"train", "generate"}) {
    Arguments arguments = train("run");
    if (command == std::string("generate")) {
      arguments = {MEMPHIS_BINARY, "generate", path("run"), "--prompt", "x"};
    }
    const Ended ended = shell("OMP_NUM_THREADS=100000 exec \"$@\"", arguments);
    EXPECT_EQ(ended.code, 2) << ended.error;
    EXPECT_TRUE(contains(ended.error, "OMP_NUM_THREADS is 100000")) << ended.error;
  }
  EXPECT_FALSE(fs::exists(path("run")));
}

TEST_F(Interruption, TheRunSaysWhatItUsesOfTheMachine) {
  const Ended ended = shell("OMP_NUM_THREADS=3 exec \"$@\"", train("run"));
  EXPECT_EQ(ended.code, 0) << ended.error;
  EXPECT_TRUE(contains(ended.error, "3 threads a rank, 1 rank on this machine")) << ended.error;
}

}  // namespace
}  // namespace memphis::test
