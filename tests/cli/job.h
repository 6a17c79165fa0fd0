// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cctype>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <unistd.h>

#include "csrc/checkpoint/store.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "tests/support/environment_variable.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

// The program as a job of several processes.
namespace memphis::test {

namespace fs = std::filesystem;

// Where a rank is killed mpirun asks the others to end, and kills them so many seconds later, which it
// always waits for: 1 by itself. By then they have said why they end, on a machine that is busy too. Less
// than run.lost_seconds, after which those that said it and ended are missed themselves.
class TimeToSayWhy {
  EnvironmentVariable seconds_{"OMPI_MCA_odls_base_sigkill_timeout", "3"};
};

// 4 ranks: tensor 2 x data 2, experts on all of them.
inline const std::vector<std::string> kLayout = {"parallel.tensor=2", "parallel.expert=4"};

class Job : public testing::Test {
 protected:
  Job() { config_ = directory_.write("tiny.yaml", tiny_yaml(directory_)); }

  void SetUp() override {
    static const std::string reason = why_mpirun_does_not_start();
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }

  // Open MPI wants a network interface, if only the loopback, which a sandbox may lack.
  static std::string why_mpirun_does_not_start() {
    const TemporaryDirectory directory;
    Process process(join(mpirun(1), {"/bin/true"}), directory.path());
    const int code = process.wait();
    const std::string said = process.standard_error();
    return code == 0 ? ""
                     : "mpirun does not start on this machine: " + said.substr(0, said.find('\n'));
  }

  std::string path(const std::string& name) const { return (directory_.path() / name).string(); }

  using Arguments = std::vector<std::string>;

  static Arguments join(Arguments first, const Arguments& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
  }
  static Arguments mpirun(int num_ranks) {
    return {MEMPHIS_MPIRUN,
            "--allow-run-as-root",
            "--oversubscribe",
            "-x",
            "OMP_NUM_THREADS=1",
            "-n",
            std::to_string(num_ranks)};
  }
  Arguments program(const std::string& run_dir, const Arguments& more) const {
    return join({MEMPHIS_BINARY, "train", config_, "run.dir=" + path(run_dir)}, more);
  }
  Arguments command(int num_ranks, const std::string& run_dir, const Arguments& more) const {
    return join(num_ranks > 1 ? mpirun(num_ranks) : Arguments(), program(run_dir, more));
  }
  Ended run(const Arguments& arguments) const { return run_to_end(arguments, directory_.path()); }
  Ended train(int num_ranks, const std::string& run_dir, const Arguments& more) const {
    return run(command(num_ranks, run_dir, more));
  }
  // Two ranks, each in a directory of its own that `prepare` has filled.
  Ended train_apart(const Arguments& more,
                    const std::string& run_dir,
                    const std::function<void(const fs::path&)>& prepare) const {
    Arguments arguments = mpirun(1);
    for (const char* name : {"first", "second"}) {
      fs::create_directory(path(name));
      prepare(path(name));
      const Arguments command = {"-wdir", path(name), MEMPHIS_BINARY, "train", config_};
      arguments =
          join(arguments, std::string(name) == "first" ? command : join({":", "-n", "1"}, command));
      arguments = join(join(arguments, {"run.dir=" + run_dir}), more);
    }
    return run(arguments);
  }
  Ended faulty(const std::string& fault, const Arguments& more) const {
    return run(join(join(mpirun(4), {MEMPHIS_FAULTY_JOB, config_, fault}), join(kLayout, more)));
  }
  // Starts an endless job and calls interrupt(process) once its step 20 is saved.
  template <class Interrupt>
  Ended interrupt(const std::string& run_dir,
                  const Interrupt& interrupt,
                  const Arguments& more = {}) const {
    Process process(command(4, run_dir, join(join(kLayout, endless()), more)), directory_.path());
    const fs::path committed = fs::path(path(run_dir)) / "step-00000020" / "COMMIT";
    while (process.running() && !fs::exists(committed) && newest_step(path(run_dir)) <= 20) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    interrupt(process);
    return end_of(process);
  }
  std::vector<double> losses(const std::string& run_dir) const {
    std::vector<double> result;
    std::ifstream file(path(run_dir) + "/metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      const auto object = parse_json(line).value();
      if (object.contains("loss")) {
        result.push_back(object["loss"]);
      }
    }
    return result;
  }
  // A run that was interrupted goes on for some steps, to the bits of one that was not.
  void expect_goes_on_as_one(const std::string& run_dir) const {
    const std::int64_t last = newest_step(path(run_dir)) + 20;
    const Arguments arguments = join(kLayout, until_step(last));
    const Ended again = train(4, run_dir, arguments);
    ASSERT_EQ(again.code, 0) << again.error;
    const Ended whole = train(4, "whole", arguments);
    ASSERT_EQ(whole.code, 0) << whole.error;
    expect_same_checkpoint("whole", run_dir, last);
  }
  void expect_same_checkpoint(const std::string& a,
                              const std::string& b,
                              std::int64_t step = 40) const {
    const fs::path first = fs::path(path(a)) / checkpoint_name(step);
    const fs::path second = fs::path(path(b)) / checkpoint_name(step);
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
inline std::vector<pid_t> ranks_of(const Process& mpirun) {
  const std::string pid = std::to_string(mpirun.pid());
  std::ifstream children("/proc/" + pid + "/task/" + pid + "/children");
  std::vector<pid_t> result;
  for (pid_t child = 0; children >> child;) {
    result.push_back(child);
  }
  return result;
}

// Whether `text` contains `part`, in which # is any number: how long it took is the machine's
// affair.
inline testing::AssertionResult says(const std::string& text, const std::string& part) {
  std::string pattern;
  for (const char letter : part) {
    if (letter == '#') {
      pattern += "[0-9]+";
    } else if (std::isalnum(static_cast<unsigned char>(letter)) != 0 || letter == ' ') {
      pattern += letter;
    } else {
      pattern += {'\\', letter};
    }
  }
  return std::regex_search(text, std::regex(pattern))
             ? testing::AssertionSuccess()
             : testing::AssertionFailure() << "\"" << part << "\" is not in \"" << text << "\"";
}

// The one line that says why a job ended.
inline std::string cause_of(const Ended& ended) {
  std::istringstream lines(ended.error);
  std::string cause;
  for (std::string line; std::getline(lines, line);) {
    const std::size_t begin = line.find("memphis: ");
    if (begin != std::string::npos) {
      EXPECT_EQ(cause, "") << "a second cause: " << line;
      cause = line.substr(begin);
    }
  }
  EXPECT_NE(cause, "") << ended.error;
  return cause;
}

}  // namespace memphis::test
