// SPDX-License-Identifier: Apache-2.0
//
// The program as a job of several processes: started by mpirun, killed, stopped, started again.
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "csrc/core/file.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

// 4 ranks: tensor 2 x data 2, experts on all of them.
const std::vector<std::string> kLayout = {"parallel.tensor=2", "parallel.expert=4"};

class Job : public testing::Test {
 protected:
  Job() { config_ = directory_.write("tiny.yaml", tiny_yaml(directory_)); }

  struct Ended {
    int code;
    std::string error;
  };
  std::string path(const std::string& name) const { return (directory_.path() / name).string(); }

  std::vector<std::string> command(int num_ranks,
                                   const std::string& run_dir,
                                   const std::vector<std::string>& more) const {
    std::vector<std::string> arguments;
    if (num_ranks > 1) {
      arguments = {MEMPHIS_MPIRUN,
                   "--allow-run-as-root",
                   "--oversubscribe",
                   "-x",
                   "OMP_NUM_THREADS=1",
                   "-n",
                   std::to_string(num_ranks)};
    }
    for (const std::string& argument :
         {std::string(MEMPHIS_BINARY), std::string("train"), config_, "run.dir=" + path(run_dir)}) {
      arguments.push_back(argument);
    }
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  Ended train(int num_ranks, const std::string& run_dir, const std::vector<std::string>& more) {
    Process process(command(num_ranks, run_dir, more), directory_.path());
    const int code = process.wait();
    return {code, process.standard_error()};
  }
  // Starts a job and calls interrupt(process) once its step 20 is saved; returns its exit code.
  template <class Interrupt>
  int interrupt(const std::string& run_dir, const Interrupt& interrupt) {
    Process process(command(4, run_dir, kLayout), directory_.path());
    const fs::path committed = fs::path(path(run_dir)) / "step-00000020" / "COMMIT";
    while (process.running() && !fs::exists(committed)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    interrupt(process);
    return process.wait();
  }
  std::vector<double> losses(const std::string& run_dir) const {
    std::vector<double> result;
    std::ifstream file(path(run_dir) + "/metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      const auto object = nlohmann::json::parse(line);
      if (object.contains("loss")) {
        result.push_back(object["loss"]);
      }
    }
    return result;
  }
  void expect_same_checkpoint(const std::string& a, const std::string& b) const {
    const fs::path first = fs::path(path(a)) / "step-00000040";
    const fs::path second = fs::path(path(b)) / "step-00000040";
    int num_files = 0;
    for (const fs::directory_entry& entry : fs::directory_iterator(first)) {
      const std::string name = entry.path().filename().string();
      if (name.ends_with(".safetensors")) {
        ++num_files;
        EXPECT_TRUE(read_text(entry.path()) == read_text(second / name)) << name;
      }
    }
    EXPECT_EQ(num_files, 8) << "each rank writes its weights and its optimizer state";
  }

  TemporaryDirectory directory_;
  std::string config_;
};

// The processes that mpirun started.
std::vector<pid_t> ranks_of(const Process& mpirun) {
  const std::string pid = std::to_string(mpirun.pid());
  std::ifstream children("/proc/" + pid + "/task/" + pid + "/children");
  std::vector<pid_t> result;
  for (pid_t child = 0; children >> child;) {
    result.push_back(child);
  }
  return result;
}

TEST_F(Job, TrainsAsOneRankDoes) {
  const Ended one = train(1, "one", {});
  ASSERT_EQ(one.code, 0) << one.error;
  const Ended four = train(4, "four", kLayout);
  ASSERT_EQ(four.code, 0) << four.error;
  const std::vector<double> expected = losses("one");
  const std::vector<double> actual = losses("four");
  ASSERT_EQ(expected.size(), 40U);
  ASSERT_EQ(actual.size(), 40U);
  // As far as rounding leaves each token with its experts: layout_test has the rest, in f64.
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(actual[i], expected[i], 1e-4 * expected[i]) << "step " << i + 1;
  }
}

TEST_F(Job, ARankThatIsKilledEndsTheJobAndItGoesOnToTheSameBits) {
  ASSERT_EQ(train(4, "whole", kLayout).code, 0);
  const int code = interrupt("killed", [](const Process& process) {
    const std::vector<pid_t> ranks = ranks_of(process);
    ASSERT_EQ(ranks.size(), 4U);
    ::kill(ranks[2], SIGKILL);
  });
  EXPECT_EQ(code, 128 + SIGKILL);
  const Ended again = train(4, "killed", kLayout);
  ASSERT_EQ(again.code, 0) << again.error;
  expect_same_checkpoint("whole", "killed");
}

TEST_F(Job, ASignalSavesOnAllRanksAndItGoesOnToTheSameBits) {
  ASSERT_EQ(train(4, "whole", kLayout).code, 0);
  EXPECT_EQ(interrupt("stopped", [](const Process& process) { process.send(SIGUSR1); }), 10);
  const Ended again = train(4, "stopped", kLayout);
  ASSERT_EQ(again.code, 0) << again.error;
  expect_same_checkpoint("whole", "stopped");
}

TEST_F(Job, GoesOnWithAnotherNumberOfRanks) {
  EXPECT_EQ(interrupt("run", [](const Process& process) { process.send(SIGUSR1); }), 10);
  const Ended two = train(2, "run", {"parallel.expert_tensor=2", "schedule.steps=39"});
  ASSERT_EQ(two.code, 0) << two.error;
  const Ended one = train(1, "run", {});
  ASSERT_EQ(one.code, 0) << one.error;
  EXPECT_EQ(losses("run").size(), 40U);
  EXPECT_TRUE(fs::exists(fs::path(path("run")) / "step-00000040" / "model.safetensors"));
}

TEST_F(Job, AConfigThatDoesNotFitTheRanksIsRefusedBeforeAnythingIsWritten) {
  const Ended ended = train(4, "run", {"parallel.tensor=3"});
  EXPECT_EQ(ended.code, 2) << ended.error;
  EXPECT_NE(ended.error.find("parallel.tensor 3 does not divide the 4 ranks of this job"),
            std::string::npos)
      << ended.error;
  EXPECT_FALSE(fs::exists(path("run")));
}

}  // namespace
}  // namespace memphis::test
