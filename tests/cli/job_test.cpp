// SPDX-License-Identifier: Apache-2.0
//
// The program as a job of several processes: started by mpirun, killed, stopped, started again.
#include "tests/cli/job.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include "csrc/checkpoint/store.h"
#include "csrc/core/cores.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/plan/machine.h"
#include "tests/support/process.h"
#include "tests/support/ranks.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

TEST_F(Job, TrainsAsOneRankDoes) {
  // In f64, where no rounding is large enough to send a token to another expert.
  const Arguments exactly = {"precision.compute=f64"};
  const Ended one = train(1, "one", exactly);
  ASSERT_EQ(one.code, 0) << one.error;
  const Ended four = train(4, "four", join(kLayout, exactly));
  ASSERT_EQ(four.code, 0) << four.error;
  const std::vector<double> expected = losses("one");
  const std::vector<double> actual = losses("four");
  ASSERT_EQ(expected.size(), 40U);
  ASSERT_EQ(actual.size(), 40U);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 1e-9 * expected[i]) << "step " << i + 1;
  }
}

// Of three sources, of which one is through its second epoch when the job is killed.
TEST_F(Job, AMixtureGoesOnInTheMiddleOfAnEpochAtAnotherNumberOfRanks) {
  const std::string text = tiny_text();
  std::string records;
  for (std::size_t begin = 0; begin + 400 <= text.size(); begin += 400) {
    records += nlohmann::json{{"text", text.substr(begin, 400)}}.dump() + "\n";
  }
  directory_.write("large.jsonl", records);
  directory_.write("small.jsonl", records.substr(0, records.find('\n', 1000) + 1));
  const std::string root = directory_.path().string();
  const Arguments mixture = {
      "precision.compute=f64",
      "checkpoint.every=1",
      "checkpoint.keep=1000",
      "batch.micro_batch=2",
      "metrics.validate_every=0",
      "data.train=[{path: " + root + "/large.jsonl, weight: 0.5}, {path: " + root +
          "/small.jsonl, weight: 0.3}, {path: " + root + "/text.txt, weight: 0.2}]"};
  Process process(join(mpirun(2), join(program("killed", endless()), mixture)), directory_.path());
  while (process.running() && newest_step(path("killed")) < 17) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (const pid_t rank : ranks_of(process)) {
    ::kill(rank, SIGKILL);
  }
  EXPECT_NE(process.wait(), 0);
  const std::int64_t last = newest_step(path("killed")) + 20;
  const Ended again = train(4, "killed", join(until_step(last), mixture));
  ASSERT_EQ(again.code, 0) << again.error;
  EXPECT_NE(again.error.find("small begins epoch"), std::string::npos) << again.error;
  EXPECT_EQ(again.error.find("tokenizing"), std::string::npos) << "text was tokenized again";
  const Ended whole = train(1, "whole", join(until_step(last), mixture));
  ASSERT_EQ(whole.code, 0) << whole.error;
  const std::vector<double> expected = losses("whole");
  const std::vector<double> actual = losses("killed");
  ASSERT_EQ(expected.size(), static_cast<std::size_t>(last));
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 1e-9 * expected[i]) << "step " << i + 1;
  }
}

TEST_F(Job, ARankThatIsKilledEndsTheJobAndItGoesOnToTheSameBits) {
  const TimeToSayWhy time;
  const Ended killed = interrupt("killed", [](const Process& process) {
    const std::vector<pid_t> ranks = ranks_of(process);
    ASSERT_EQ(ranks.size(), 4U);
    ::kill(ranks[2], SIGKILL);
  });
  EXPECT_EQ(killed.code, 128 + SIGKILL) << "which mpirun makes of it";
  const std::string cause = cause_of(killed);
  EXPECT_TRUE(cause.starts_with("memphis: rank 2 of 4 on ")) << cause;
  EXPECT_NE(cause.find(" is gone (killed, or out of memory); last heard of in "), std::string::npos)
      << cause;
  expect_goes_on_as_one("killed");
}

TEST_F(Job, ASignalSavesOnAllRanksAndItGoesOnToTheSameBits) {
  const Ended stopped = interrupt("stopped", [](const Process& process) { process.send(SIGUSR1); });
  EXPECT_EQ(stopped.code, 10) << stopped.error;
  EXPECT_TRUE(cause_of(stopped).starts_with("memphis: stopped by signal ")) << stopped.error;
  expect_goes_on_as_one("stopped");
}

// More than the job validates while the test waits: the pass is given up, on all ranks, or the test
// runs into its time limit.
TEST_F(Job, ASignalToOneRankGivesAValidationUpOnAll) {
  std::string text;
  for (int i = 0; i < 2000; ++i) {
    text += tiny_text();
  }
  const std::string validation = "data.validation=[" + directory_.write("large.txt", text) + "]";
  const Arguments layout = join(kLayout, {validation});
  ASSERT_EQ(train(4, "whole", join(layout, {"metrics.validate_batches=2"})).code, 0);
  Process process(command(4, "run", layout), directory_.path());
  while (process.running() && process.standard_error().find("step 20/40") == std::string::npos) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const std::vector<pid_t> ranks = ranks_of(process);
  ASSERT_EQ(ranks.size(), 4U);
  ::kill(ranks[3], SIGTERM);
  const Ended stopped = end_of(process);
  EXPECT_EQ(stopped.code, 10) << stopped.error;
  EXPECT_NE(cause_of(stopped).find("after step 20, which is saved"), std::string::npos)
      << stopped.error;
  EXPECT_EQ(read_text(path("run") + "/metrics.jsonl").find("validation"), std::string::npos);
  const Ended again = train(4, "run", join(layout, {"metrics.validate_batches=2"}));
  ASSERT_EQ(again.code, 0) << again.error;
  expect_same_checkpoint("whole", "run");
}

// Rank 0 waits for run.dir, which another job has, and the others for rank 0.
TEST_F(Job, ASignalBeforeTheFirstStepEndsItOnAllRanks) {
  fs::create_directories(path("run"));
  const int descriptor =
      ::open((path("run") + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::flock(descriptor, LOCK_EX), 0);
  Process process(command(4, "run", join(kLayout, {"run.resume=never"})), directory_.path());
  while (process.running() && process.standard_error().find("is in use by") == std::string::npos) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const std::vector<pid_t> ranks = ranks_of(process);
  ASSERT_EQ(ranks.size(), 4U);
  ::kill(ranks[1], SIGTERM);
  const Ended stopped = end_of(process);
  ::close(descriptor);
  EXPECT_EQ(stopped.code, 10) << stopped.error;
  const std::string cause = cause_of(stopped);
  EXPECT_TRUE(cause.starts_with("memphis: rank 1 of 4 on ")) << cause;
  EXPECT_NE(cause.find("before its first step"), std::string::npos) << cause;
}

TEST_F(Job, ThatIsBoundToOneCoreSaysSo) {
  // As many as control groups give it time for.
  const Cores cores = cores_of_process();
  if (std::min<double>(cores.allowed, cores.quota.value_or(cores.allowed)) <= 1) {
    GTEST_SKIP() << "there is one core";
  }
  const auto start = [&](const std::string& run_dir, const Arguments& options) {
    Arguments all = {
        "/usr/bin/env", "-u", "OMP_NUM_THREADS", MEMPHIS_MPIRUN, "--allow-run-as-root"};
    return run(join(join(all, options), join({"-n", "1"}, program(run_dir, {}))));
  };
  const Ended bound = start("bound", {"--bind-to", "hwthread"});
  if (bound.code == 1) {
    GTEST_SKIP() << "mpirun cannot bind ranks here: " << bound.error;
  }
  EXPECT_EQ(bound.code, 0) << bound.error;
  EXPECT_NE(bound.error.find("this rank may use 1 of "), std::string::npos) << bound.error;
  EXPECT_NE(bound.error.find("--bind-to none"), std::string::npos) << bound.error;
  const Ended free = start("free", {"--bind-to", "none"});
  EXPECT_EQ(free.code, 0) << free.error;
  EXPECT_EQ(free.error.find("this rank may use"), std::string::npos) << free.error;
}

TEST_F(Job, ARankThatIsStoppedEndsTheJob) {
  const Ended ended = interrupt("run", [](const Process& process) {
    const std::vector<pid_t> ranks = ranks_of(process);
    ASSERT_EQ(ranks.size(), 4U);
    // Its steps are shorter than what a beat is late.
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    ::kill(ranks[0], SIGSTOP);
  });
  EXPECT_EQ(ended.code, 12) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_TRUE(cause.starts_with("memphis: rank 0 of 4 on ")) << cause;
  for (const char* part : {": silent for # s (stopped, or its machine or network is down); "
                           "last heard of in step ",
                           "; not arrived: rank 0; noticed by rank 1 in step ",
                           " of the "}) {
    EXPECT_TRUE(says(cause, part));
  }
}

TEST_F(Job, ThatIsStoppedAsAWholeGoesOn) {
  const std::string run_dir = path("run");
  const Ended ended = interrupt("run",
                                [&](Process& process) {
                                  for (const pid_t rank : ranks_of(process)) {
                                    ::kill(rank, SIGSTOP);
                                  }
                                  std::this_thread::sleep_for(std::chrono::seconds(7));
                                  for (const pid_t rank : ranks_of(process)) {
                                    ::kill(rank, SIGCONT);
                                  }
                                  const std::int64_t step = newest_step(run_dir);
                                  while (process.running() && newest_step(run_dir) <= step) {
                                    std::this_thread::sleep_for(std::chrono::milliseconds(1));
                                  }
                                  process.send(SIGUSR1);
                                },
                                {"run.lost_seconds=5"});
  EXPECT_EQ(ended.code, 10) << ended.error;
}

TEST_F(Job, AnExceptionOnOneRankEndsTheJob) {
  const Ended ended = faulty("throws", {});
  EXPECT_EQ(ended.code, 11) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_TRUE(cause.starts_with("memphis: rank 1 of 4 on ")) << cause;
  EXPECT_NE(cause.find(", step 3, backward of layer 1, after "), std::string::npos) << cause;
  EXPECT_TRUE(cause.ends_with(": planted")) << cause;
}

TEST_F(Job, RanksThatDoNotMakeTheSameCallsEndTheJob) {
  const Ended ended = faulty("skips", {"run.lost_seconds=5"});
  EXPECT_EQ(ended.code, 12) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_TRUE(says(cause, ": all 4 ranks wait for each other since # s"));
  EXPECT_NE(cause.find("rank 0: step 3, backward of layer 1, in tensor.sum_terms of the tensor "),
            std::string::npos)
      << cause;
}

TEST_F(Job, ARankThatLivesAndDoesNotComeEndsTheJob) {
  const Ended ended = faulty("stands", {"run.hang_seconds=5"});
  EXPECT_EQ(ended.code, 12) << ended.error;
  const std::string cause = cause_of(ended);
  // All that wait are at their limit at about one time, and any of them may be first to say so: the
  // one that waits for rank 1 itself, or one behind it.
  const bool itself = cause.find("step 3, backward of layer 1, ") != std::string::npos;
  EXPECT_TRUE(itself
                  ? says(cause, "tensor.sum_terms has waited for # s; not arrived: rank 1 (alive")
                  : says(cause, " has waited for # s; not arrived: ranks # and 1 (alive"))
      << cause;
}

// Longer than MPI_Finalize may wait.
TEST_F(Job, ARankThatHasMoreToDoAtTheEndIsWaitedFor) {
  const Ended ended = faulty("lingers", {"run.lost_seconds=5"});
  EXPECT_EQ(ended.code, 0) << ended.error;
}

TEST_F(Job, ARankThatNeverComesToTheEndEndsTheJob) {
  const Ended ended = faulty("stays", {"run.hang_seconds=5"});
  EXPECT_EQ(ended.code, 12) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_TRUE(says(cause, "job.end has waited for # s; not arrived: rank"));
}

TEST_F(Job, ARankThatIsStoppedWhenAllIsDoneEndsTheJob) {
  const Ended ended = faulty("stops", {"run.lost_seconds=5"});
  EXPECT_EQ(ended.code, 12) << ended.error;
  const std::string cause = cause_of(ended);
  // The first rank's limit is the shortest; on a machine that is busy another one may be there first.
  EXPECT_TRUE(says(cause, "memphis: rank # of 4 on ")) << cause;
  EXPECT_TRUE(says(cause, "MPI_Finalize has waited for # s"));
}

TEST_F(Job, RanksWithDifferentConfigsAreRefusedBeforeAnythingIsWritten) {
  Arguments arguments = join(mpirun(3), program("run", kLayout));
  const Arguments other = join({":", "-n", "1"}, program("run", {"optimizer.learning_rate=1e-4"}));
  const Ended ended = run(join(arguments, join(other, kLayout)));
  EXPECT_EQ(ended.code, 2) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_NE(cause.find("the config of rank 3 differs from that of rank 0: its line "),
            std::string::npos)
      << cause;
  EXPECT_NE(cause.find("`  learning_rate: 1e-04` and not `  learning_rate: 0.004`"),
            std::string::npos)
      << cause;
  EXPECT_FALSE(fs::exists(path("run")));
}

TEST_F(Job, RanksThatReadDifferentTextAreRefusedBeforeAnythingIsWritten) {
  const Ended ended = train_apart({"data.train=[own.txt]"}, path("run"), [&](const fs::path& dir) {
    write_text_atomically(dir / "own.txt", tiny_text() + dir.filename().string());
  });
  EXPECT_EQ(ended.code, 3) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_NE(
      cause.find("the text of rank 1 differs from that of rank 0: its line 1 is `data.train: "),
      std::string::npos)
      << cause;
  EXPECT_FALSE(fs::exists(path("run")));
}

TEST_F(Job, TextThatIsCutShortEndsAllRanksWhenTheyHaveSaved) {
  Process process(
      command(4,
              "run",
              join(kLayout,
                   {"schedule.steps=1000000", "checkpoint.every=0", "metrics.validate_every=0"})),
      directory_.path());
  const fs::path metrics = path("run") + "/metrics.jsonl";
  const auto has_a_step = [&] {
    return fs::exists(metrics) && read_text(metrics).find("\"loss\"") != std::string::npos;
  };
  while (process.running() && !has_a_step()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  fs::resize_file(path("text.txt"), 0);
  const Ended ended = end_of(process);
  EXPECT_EQ(ended.code, 3) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_NE(cause.find(path("text.txt") + " has no byte "), std::string::npos) << cause;
  int num_saved = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(path("run"))) {
    num_saved += fs::exists(entry.path() / "COMMIT") ? 1 : 0;
  }
  EXPECT_EQ(num_saved, 1) << ended.error;
}

TEST_F(Job, RanksThatDoNotShareTheRunDirectoryAreRefusedBeforeTheFirstStep) {
  const Ended ended = train_apart({}, "run", [](const fs::path& /*dir*/) {});
  EXPECT_EQ(ended.code, 5) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_NE(cause.find("run.dir run is not that of rank 0 (there is no config.yaml that it wrote"),
            std::string::npos)
      << cause;
  EXPECT_FALSE(fs::exists(path("first/run/metrics.jsonl")));
}

TEST_F(Job, GoesOnWithAnotherNumberOfRanks) {
  EXPECT_EQ(interrupt("run", [](const Process& process) { process.send(SIGUSR1); }).code, 10);
  const std::int64_t step = newest_step(path("run"));
  const Ended two = train(2, "run", join(until_step(step + 9), {"parallel.expert_tensor=2"}));
  ASSERT_EQ(two.code, 0) << two.error;
  const Ended one = train(1, "run", until_step(step + 10));
  ASSERT_EQ(one.code, 0) << one.error;
  EXPECT_EQ(losses("run").size(), static_cast<std::size_t>(step + 10));
  EXPECT_TRUE(fs::exists(fs::path(path("run")) / checkpoint_name(step + 10) / "model.safetensors"));
}

TEST_F(Job, AnExportHasTheLogitsOfItsRun) {
  const std::string tokens = directory_.write("tokens.json", "{\"tokens\": [[1, 5, 0, 258, 77]]}");
  for (const std::string compute : {"f32", "bf16"}) {
    const auto own = [&](const char* name) { return path(compute + name); };
    const Ended trained =
        train(4, compute + "_run", join(kLayout, {"precision.compute=" + compute}));
    ASSERT_EQ(trained.code, 0) << trained.error;
    const Ended exported = run({MEMPHIS_BINARY, "export", own("_run"), own("_model")});
    ASSERT_EQ(exported.code, 0) << exported.error;
    EXPECT_EQ(run({MEMPHIS_BINARY, "logits", own("_run"), tokens, own("_a.npy")}).code, 0);
    EXPECT_EQ(run({MEMPHIS_BINARY, "logits", own("_model"), tokens, own("_b.npy")}).code, 0);
    EXPECT_TRUE(read_text(own("_a.npy")) == read_text(own("_b.npy"))) << compute;
  }
}

// A viewer draws what overlaps on one track in the wrong place, or not at all.
void expect_one_span_at_a_time(const nlohmann::json& events) {
  std::map<std::pair<int, int>, std::vector<nlohmann::json>> tracks;
  for (const auto& event : events) {
    if (event["ph"] == "X") {
      tracks[{event["pid"], event["tid"]}].push_back(event);
    }
  }
  for (auto& [track, spans] : tracks) {
    std::sort(
        spans.begin(), spans.end(), [](const auto& a, const auto& b) { return a["ts"] < b["ts"]; });
    for (std::size_t i = 0; i + 1 < spans.size(); ++i) {
      constexpr double kRounding = 0.01;  // of microseconds, in text
      ASSERT_LE(spans[i]["ts"].get<double>() + spans[i]["dur"].get<double>(),
                spans[i + 1]["ts"].get<double>() + kRounding)
          << "rank " << track.first << ": " << spans[i] << " and " << spans[i + 1];
    }
  }
}

TEST_F(Job, TheTraceShowsCommunicationBehindTheBackwardPass) {
  const Ended ended =
      train(4, "run", join(kLayout, {"metrics.trace=true", "parallel.bucket_mib=0"}));
  ASSERT_EQ(ended.code, 0) << ended.error;
  const auto events = parse_json(read_text(path("run") + "/trace/all.json")).value();
  expect_one_span_at_a_time(events);
  std::set<int> ranks;
  std::vector<std::pair<double, double>> backward;   // of rank 0, begin and end
  std::vector<std::pair<double, double>> gradients;  // on their way
  for (const auto& event : events) {
    ranks.insert(event["pid"].get<int>());
    if (event["ph"] != "X" || event["pid"] != 0) {
      continue;
    }
    const double begin = event["ts"];
    const double end = begin + event["dur"].get<double>();
    const std::string name = event["name"];
    if (name.starts_with("backward")) {
      backward.emplace_back(begin, end);
    } else if (name == "optimizer.gradients") {
      gradients.emplace_back(begin, end);
    }
  }
  EXPECT_EQ(ranks, (std::set<int>{0, 1, 2, 3}));
  const bool hidden = std::any_of(gradients.begin(), gradients.end(), [&](const auto& moved) {
    return std::any_of(backward.begin(), backward.end(), [&](const auto& worked) {
      return moved.first < worked.second && worked.first < moved.second;
    });
  });
  EXPECT_TRUE(hidden) << gradients.size() << " reductions, none within " << backward.size()
                      << " backward passes of layers";
}

TEST_F(Job, ABenchmarkSaysHowMuchCommunicationIsHidden) {
  Process process(
      join(mpirun(2), {MEMPHIS_BINARY, "bench", "step", config_, "--steps", "2", "--json"}),
      directory_.path());
  ASSERT_EQ(process.wait(), 0) << process.standard_error();
  const auto result = parse_json(process.standard_output()).value();
  EXPECT_EQ(result["ranks"], 2);
  EXPECT_GT(result["communication_seconds"], 0);
  EXPECT_GT(result["exposed_seconds"], 0);
  EXPECT_GE(result["hidden_communication"], 0);
  EXPECT_LT(result["hidden_communication"], 1);
}

TEST_F(Job, BenchMachineMeasuresTheLinksOfItsRanks) {
  // What no machine has.
  std::string text = read_text("configs/machines/cpu.yaml");
  const std::size_t node = text.find("\nnode: {");
  ASSERT_NE(node, std::string::npos);
  text.replace(node,
               text.find('\n', node + 1) - node,
               "\nnode: {ranks: 8, latency_us: 1e9, gb_per_second: 1e9, rows_gb_per_second: 1e9}");
  const std::string other = directory_.write("other.yaml", text);
  Process process(
      join(mpirun(2), {MEMPHIS_BINARY, "bench", "machine", "--device", "cpu", "--like", other}),
      directory_.path());
  ASSERT_EQ(process.wait(), 0) << process.standard_error();
  const std::string file = directory_.write("here.yaml", process.standard_output());
  const Machine machine = load_machine(file);
  const Machine like = load_machine(other);
  EXPECT_EQ(machine.node.ranks, 2);
  EXPECT_NE(machine.node.latency_us, like.node.latency_us);
  EXPECT_NE(machine.node.gb_per_second, like.node.gb_per_second);
  EXPECT_NE(machine.node.rows_gb_per_second, like.node.rows_gb_per_second);
  EXPECT_EQ(machine.pod, like.pod) << "no other machine was measured";
}

TEST_F(Job, AConfigThatDoesNotFitTheRanksIsRefusedBeforeAnythingIsWritten) {
  const Ended ended = train(4, "run", {"parallel.tensor=3"});
  EXPECT_EQ(ended.code, 2) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_TRUE(
      cause.starts_with("memphis: argument 'parallel.tensor=3': parallel.tensor 3 does not "
                        "divide the 4 ranks of this job"))
      << cause;
  EXPECT_FALSE(fs::exists(path("run")));
}

// Two ranks on Device::cuda, of which one step takes a second where it is simulated.
class DeviceJob : public Job {
 protected:
  void SetUp() override {
    Job::SetUp();
    const std::string reason = why_no_gpu_ranks(2);
    if (!IsSkipped() && !reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }

  nlohmann::json first_step(const std::string& run_dir) const {
    std::ifstream metrics(path(run_dir) + "/metrics.jsonl");
    for (std::string line; std::getline(metrics, line);) {
      if (nlohmann::json object = parse_json(line).value(); object.contains("loss")) {
        return object;
      }
    }
    ADD_FAILURE() << "no step is in metrics.jsonl";
    return {};
  }

  // What metrics.jsonl says of validations, which it no longer does then.
  std::vector<nlohmann::json> take_validations(const std::string& run_dir) const {
    const std::string file = path(run_dir) + "/metrics.jsonl";
    std::istringstream lines(read_text(file));
    std::vector<nlohmann::json> taken;
    std::string left;
    for (std::string line; std::getline(lines, line);) {
      if (nlohmann::json object = parse_json(line).value(); object.contains("validation_loss")) {
        taken.push_back(std::move(object));
      } else {
        left += line + "\n";
      }
    }
    std::ofstream(file) << left;
    return taken;
  }

  // `overrides` in place of those of small_ for the same keys.
  Arguments small_but(const Arguments& overrides) const {
    Arguments arguments = small_;
    for (const std::string& other : overrides) {
      const std::string key = other.substr(0, other.find('=') + 1);
      std::erase_if(arguments, [&](const std::string& each) { return each.starts_with(key); });
      arguments.push_back(other);
    }
    return arguments;
  }

  const Arguments small_ = {"run.device=cuda",
                            "model.vocab_size=264",
                            "model.num_layers=1",
                            "model.d_model=16",
                            "model.num_heads=2",
                            "model.ffn_dim=16",
                            "parallel.tensor=2",
                            "batch.sequence_length=8",
                            "batch.micro_batch=1",
                            "batch.global_batch=1",
                            "schedule.steps=3",
                            "schedule.warmup_steps=0",
                            "metrics.validate_every=0",
                            "metrics.validate_batches=1"};
};

TEST_F(DeviceJob, ARankThatLivesAndDoesNotComeEndsTheJob) {
  const Ended ended = run(join(join(mpirun(2), {MEMPHIS_FAULTY_JOB, config_, "stands"}),
                               join(small_, {"run.hang_seconds=10"})));
  EXPECT_EQ(ended.code, 12) << ended.error;
  const std::string cause = cause_of(ended);
  EXPECT_TRUE(cause.starts_with("memphis: rank 0 of 2 on ")) << cause;
  EXPECT_TRUE(
      says(cause,
           "step 3, backward of layer 0, in tensor.sum_terms of the tensor group: the GPU "
           "has stood there for # s; not arrived: rank 1, the nearest before it that stands "
           "in none, is in step 3, backward of layer 0, "));
}

// Its ranks meet when what they have timed is gone.
TEST_F(DeviceJob, ABenchmarkOfTwoRanksEnds) {
  const Ended ended = run(join(join(mpirun(2), {MEMPHIS_BINARY, "bench", "step", config_}),
                               join(small_, {"--steps", "1"})));
  EXPECT_EQ(ended.code, 0) << ended.error;
}

TEST_F(DeviceJob, TheTraceShowsWhatStreamsDo) {
  const Ended ended = train(2, "run", join(small_, {"metrics.trace=true"}));
  ASSERT_EQ(ended.code, 0) << ended.error;
  const auto events = parse_json(read_text(path("run") + "/trace/rank-00001.json")).value();
  expect_one_span_at_a_time(events);
  std::map<int, std::string> tracks;
  std::map<std::string, std::set<std::string>> names;  // of spans, by track
  for (const auto& event : events) {
    if (event["name"] == "thread_name") {
      tracks[event["tid"]] = event["args"]["name"];
    } else if (event["ph"] == "X") {
      names[tracks.at(event["tid"])].insert(event["name"]);
    }
  }
  EXPECT_TRUE(names["gpu"].contains("backward 0"));
  EXPECT_TRUE(names["gpu"].contains("optimizer"));
  EXPECT_TRUE(names["tensor on the gpu"].contains("tensor.sum_terms"));
  EXPECT_TRUE(names["gpu waiting"].contains("tensor.sum_terms"));
  EXPECT_TRUE(names["step"].contains("backward 0"));
  EXPECT_GT(first_step("run")["communication_seconds"], 0);
  EXPECT_GT(first_step("run")["exposed_seconds"], 0);
}

// A library loads a kernel for the first product of its shape, and a GPU loads none while a receive
// waits: it is loaded before any is on its way. The second run owes a validation and no step.
TEST_F(DeviceJob, APipelineLoadsItsProductsBeforeItReceives) {
  for (const std::string schedule : {"1f1b", "zbv"}) {
    SCOPED_TRACE(schedule);
    const Arguments pipeline =
        small_but({"model.num_layers=4",
                   "parallel.pipeline=2",
                   "parallel.tensor=1",
                   "parallel.schedule=" + schedule,
                   "parallel.chunks=" + std::string(schedule == "zbv" ? "2" : "1"),
                   "batch.global_batch=4",
                   "schedule.steps=1",
                   "metrics.validate_batches=4",
                   "run.hang_seconds=60"});
    const Ended ended = train(2, schedule, pipeline);
    ASSERT_EQ(ended.code, 0) << ended.error;
    const std::vector<nlohmann::json> of_first = take_validations(schedule);
    ASSERT_EQ(of_first.size(), 1U);
    const Ended again = train(2, schedule, pipeline);
    ASSERT_EQ(again.code, 0) << again.error;
    const std::vector<nlohmann::json> of_second = take_validations(schedule);
    ASSERT_EQ(of_second.size(), 1U);
    EXPECT_EQ(of_second[0]["validation_loss"], of_first[0]["validation_loss"]);
  }
}

// On the stream of a rank's work the passes of a pair take turns, while the rows of the other are on
// their way on another stream.
TEST_F(DeviceJob, TheTraceShowsRowsBesideAnotherMicroBatch) {
  const Arguments paired =
      small_but({"metrics.trace=true", "parallel.expert=2", "batch.global_batch=3"});
  const Ended ended = train(2, "run", paired);
  ASSERT_EQ(ended.code, 0) << ended.error;
  const auto events = parse_json(read_text(path("run") + "/trace/rank-00001.json")).value();
  std::map<int, std::string> tracks;
  std::vector<std::pair<double, std::string>> phases;  // of the layer, in order of time
  std::map<std::string, int> moved;
  for (const auto& event : events) {
    if (event["name"] == "thread_name") {
      tracks[event["tid"]] = event["args"]["name"];
    } else if (event["ph"] == "X") {
      const std::string& track = tracks.at(event["tid"]);
      const std::string name = event["name"];
      if (track == "gpu" && (name == "forward 0" || name == "backward 0")) {
        const int batch = event.contains("args") ? event["args"]["micro_batch"].get<int>() : -1;
        phases.emplace_back(event["ts"].get<double>(),
                            (name[0] == 'f' ? "F" : "B") + std::to_string(batch));
      } else if (track == "expert_ranks on the gpu") {
        ++moved[name];
      }
    }
  }
  std::sort(phases.begin(), phases.end());
  std::string turns;
  std::string batches;
  for (const auto& [begin, turn] : phases) {
    turns += turn.substr(0, 1);
    batches += turn.substr(1);
  }
  // Three micro-batches: the first forward pass, two pairs with an exchange to the experts and one
  // back in each direction, the last backward pass.
  const std::string of_step = std::string("F") + "BFBFBF" + "BFBFBF" + "B";
  EXPECT_EQ(turns, of_step + of_step + of_step + "F") << "and validation at the end";
  EXPECT_EQ(batches.substr(0, of_step.size()),
            "0"
            "010101"
            "121212"
            "2");
  for (const char* name : {"moe.dispatch", "moe.gates", "moe.combine"}) {
    EXPECT_EQ(moved[name], 10) << name;
  }
  for (const char* name : {"moe.dcombine", "moe.ddispatch", "moe.dgates"}) {
    EXPECT_EQ(moved[name], 9) << name;
  }
}

// The input that a layer has kept is on its way to the gradient of its weight before the stream of the
// rank's work comes to the exchange of keys' gradients, and is waited for behind it: beside attention's
// backward pass and a product. Without overlap it begins behind them.
TEST_F(DeviceJob, TheTraceShowsTokensBesideTheProductsOfAnother) {
  for (const bool overlap : {true, false}) {
    const std::string name = overlap ? "beside" : "alone";
    const std::string choice = overlap ? "required" : "never";
    Arguments shared = small_;
    std::replace(shared.begin(),
                 shared.end(),
                 std::string("batch.sequence_length=8"),
                 std::string("batch.sequence_length=16"));
    const Ended ended = train(
        4,
        name,
        join(shared,
             {"metrics.trace=true", "parallel.context=2", "parallel.overlap_tensor=" + choice}));
    ASSERT_EQ(ended.code, 0) << ended.error;
    const auto events = parse_json(read_text(path(name) + "/trace/rank-00001.json")).value();
    std::map<int, std::string> tracks;
    std::vector<double> begun;  // of gathers, on their stream
    std::vector<double> waits;  // for them, on that of the work
    std::vector<double> keys;
    for (const auto& event : events) {
      if (event["name"] == "thread_name") {
        tracks[event["tid"]] = event["args"]["name"];
      } else if (event["ph"] == "X") {
        const std::string& track = tracks.at(event["tid"]);
        const auto time = event["ts"].get<double>();
        if (event["name"] == "tensor.whole_tokens") {
          if (track == "tensor on the gpu") {
            begun.push_back(time);
          } else if (track == "gpu waiting") {
            waits.push_back(time);
          }
        } else if (event["name"] == "context.dkeys" && track == "gpu waiting") {
          keys.push_back(time);
        }
      }
    }
    for (std::vector<double>* const times : {&begun, &waits, &keys}) {
      std::sort(times->begin(), times->end());
    }
    ASSERT_EQ(begun.size(), waits.size());
    int beside = 0;
    for (std::size_t i = 0; i < begun.size(); ++i) {
      beside += std::any_of(keys.begin(), keys.end(), [&](double time) {
        return begun[i] < time && time < waits[i];
      });
    }
    EXPECT_EQ(keys.size(), 3U) << "a layer, three steps";
    EXPECT_EQ(beside, overlap ? 3 : 0) << name;
  }
}

TEST_F(DeviceJob, CommunicationThatNobodyTimesIsLeftOut) {
  const Ended ended = train(2, "run", small_);
  ASSERT_EQ(ended.code, 0) << ended.error;
  EXPECT_FALSE(first_step("run").contains("communication_seconds"));
}

}  // namespace
}  // namespace memphis::test
