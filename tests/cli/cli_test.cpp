// SPDX-License-Identifier: Apache-2.0
//
// The program as its user meets it: commands, exit codes, and what a kill leaves behind.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include <gtest/gtest.h>

#include "csrc/checkpoint/store.h"
#include "csrc/core/device.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "tests/support/environment_variable.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

class Cli : public testing::Test {
 protected:
  Cli() { config_ = directory_.write("tiny.yaml", tiny_yaml(directory_)); }

  std::vector<std::string> command(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), MEMPHIS_BINARY);
    return arguments;
  }
  Ended run(const std::vector<std::string>& arguments) {
    return run_to_end(command(arguments), directory_.path());
  }
  std::string path(const std::string& name) const { return (directory_.path() / name).string(); }
  Ended train(const std::string& run_dir, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"train", config_, "run.dir=" + path(run_dir)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  // Sends `signal` to a run once `done` holds; returns its exit code.
  template <class Done>
  int interrupt(const std::string& run_dir,
                int signal,
                const Done& done,
                const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"train", config_, "run.dir=" + path(run_dir)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    Process process(command(arguments), directory_.path());
    while (process.running() && !done()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    process.send(signal);
    return process.wait();
  }
  bool same(const std::string& a, const std::string& b) const {
    return read_text(path(a)) == read_text(path(b));
  }
  void expect_same_checkpoint(const std::string& a,
                              const std::string& b,
                              std::int64_t step = 40) const {
    const std::string checkpoint = "/" + checkpoint_name(step) + "/";
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "config.json"}) {
      EXPECT_TRUE(same(a + checkpoint + file, b + checkpoint + file)) << file;
    }
  }
  // A run that was interrupted goes on for some steps, to the bits of one that was not.
  void expect_goes_on_as_one(const std::string& run_dir) {
    const std::int64_t last = newest_step(path(run_dir)) + 20;
    const Ended again = train(run_dir, until_step(last));
    ASSERT_EQ(again.code, 0) << again.error;
    ASSERT_EQ(train("whole", until_step(last)).code, 0);
    expect_same_checkpoint("whole", run_dir, last);
    expect_all_steps(run_dir, last);
  }
  // Every step of metrics.jsonl once and in order.
  void expect_all_steps(const std::string& run_dir, std::int64_t last = 40) const {
    std::ifstream file(path(run_dir) + "/metrics.jsonl");
    std::int64_t expected = 1;
    for (std::string line; std::getline(file, line);) {
      const auto object = parse_json(line).value();
      if (object.contains("loss")) {
        EXPECT_EQ(object["step"], expected++);
      }
    }
    EXPECT_EQ(expected, last + 1);
  }

  TemporaryDirectory directory_;
  std::string config_;
};

TEST_F(Cli, AKilledRunGoesOnToTheSameBits) {
  const auto saved = [&] { return newest_step(path("killed")) > 20; };
  ASSERT_EQ(interrupt("killed", SIGKILL, saved, endless()), 128 + SIGKILL);
  expect_goes_on_as_one("killed");
}

TEST_F(Cli, ASignalSavesAndTheRunGoesOnToTheSameBits) {
  const fs::path metrics = fs::path(path("stopped")) / "metrics.jsonl";
  const auto started = [&] { return fs::exists(metrics) && fs::file_size(metrics) > 0; };
  ASSERT_EQ(interrupt("stopped", SIGUSR1, started, endless()), 10);
  expect_goes_on_as_one("stopped");
}

// The scheduler says when, and the run when it has started; either ends as a signal does.
TEST_F(Cli, ATimeLimitSavesAndTheRunGoesOnToTheSameBits) {
  const Ended limited =
      train("endless", {"run.time_limit=1s", "checkpoint.every=0", "schedule.steps=1000000"});
  EXPECT_EQ(limited.code, 10) << limited.error;
  EXPECT_NE(limited.error.find("stopped ahead of run.time_limit after step "), std::string::npos)
      << limited.error;
  ASSERT_EQ(train("whole").code, 0);
  {
    const EnvironmentVariable end_time("SLURM_JOB_END_TIME", "1000000000");  // long ago
    const Ended slurm = train("limited", {"checkpoint.every=0"});
    EXPECT_EQ(slurm.code, 10) << slurm.error;
    EXPECT_NE(slurm.error.find("after step 1, which is saved"), std::string::npos) << slurm.error;
    EXPECT_NE(slurm.error.find("ahead of the end of the Slurm job"), std::string::npos)
        << slurm.error;
    ASSERT_EQ(train("limited", {"run.time_limit=none"}).code, 0);
  }
  expect_same_checkpoint("whole", "limited");
  expect_all_steps("limited");
}

TEST_F(Cli, AnIntervalByArithmeticBeginsWithASaveAfterTheFirstStep) {
  const Ended ended = train("auto", {"checkpoint.every=auto", "checkpoint.keep=1"});
  ASSERT_EQ(ended.code, 0) << ended.error;
  EXPECT_NE(ended.error.find("step-00000001 in "), std::string::npos) << ended.error;
  EXPECT_NE(ended.error.find("for a failure each 5.07e+04 h"), std::string::npos) << ended.error;
  ASSERT_EQ(train("whole").code, 0);
  expect_same_checkpoint("whole", "auto");
}

// A step begins with its data, where its seconds begin, too, and ends with its optimizer.
TEST_F(Cli, ASaveByArithmeticIsNoPartOfAStep) {
  const Ended ended = train("auto",
                            {"checkpoint.every=auto",
                             "checkpoint.background=never",
                             "metrics.every=1000",
                             "metrics.trace=true"});
  ASSERT_EQ(ended.code, 0) << ended.error;
  const auto events = parse_json(read_text(path("auto/trace/rank-00000.json"))).value();
  std::vector<std::pair<double, std::string>> phases;  // by when they began
  for (const auto& event : events) {
    if (event["ph"] == "X") {
      phases.emplace_back(event["ts"].get<double>(), event["name"]);
    }
  }
  std::sort(phases.begin(), phases.end());
  bool in_step = false;
  int saves = 0;
  for (const auto& [begin, name] : phases) {
    if (name == "data") {
      in_step = true;
    } else if (name == "optimizer") {
      in_step = false;
    } else if (name == "saving a checkpoint") {
      ++saves;
      EXPECT_FALSE(in_step) << "save " << saves;
    }
  }
  EXPECT_GE(saves, 2);  // after the first step and at the end
}

TEST_F(Cli, ARunKilledBeforeItsFirstCheckpointStartsOverAndSaysSo) {
  const fs::path metrics = fs::path(path("early")) / "metrics.jsonl";
  const auto started = [&] { return fs::exists(metrics) && fs::file_size(metrics) > 0; };
  ASSERT_EQ(interrupt("early", SIGKILL, started, {"checkpoint.every=0", "schedule.steps=1000000"}),
            128 + SIGKILL);
  EXPECT_EQ(train("early", {"run.resume=required"}).code, 4);
  const Ended again = train("early");
  EXPECT_EQ(again.code, 0) << again.error;
  EXPECT_NE(again.error.find("starts over from step 0"), std::string::npos) << again.error;
  expect_all_steps("early");
  ASSERT_EQ(train("whole").code, 0);
  expect_same_checkpoint("whole", "early");
}

// To start from scratch in silence would be to lose what was saved without a word.
TEST_F(Cli, ARunWhoseCheckpointsAreGoneIsNotStartedOver) {
  ASSERT_EQ(train("run").code, 0);
  for (const char* step : {"step-00000020", "step-00000040"}) {
    fs::remove_all(fs::path(path("run")) / step);
  }
  const Ended again = train("run");
  EXPECT_EQ(again.code, 4) << again.error;
  EXPECT_NE(again.error.find("choose another run.dir"), std::string::npos) << again.error;
  EXPECT_EQ(train("run", {"run.resume=never"}).code, 0);
}

TEST_F(Cli, ASecondJobIsToldOfTheFirstBeforeThatHasSaved) {
  Process first(command({"train",
                         config_,
                         "run.dir=" + path("run"),
                         "checkpoint.every=0",
                         "schedule.steps=1000000"}),
                directory_.path());
  const fs::path metrics = fs::path(path("run")) / "metrics.jsonl";
  while (first.running() && !(fs::exists(metrics) && fs::file_size(metrics) > 0)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const Ended second = train("run");
  EXPECT_EQ(second.code, 5) << second.error;
  EXPECT_NE(second.error.find("is in use by process " + std::to_string(first.pid()) + " on "),
            std::string::npos)
      << second.error;
}

TEST_F(Cli, TheDoctorListsGoodAndBadNodesAndEndsWithWhatIsWrong) {
  const std::string bad = path("bad.txt");
  const std::string good = path("good.txt");
  // A machine that is well, whatever ports and shared memory this one has.
  const std::string machine = path("machine");
  fs::create_directories(machine + "/sys");
  fs::create_directories(machine + "/dev/shm");
  const auto examine = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {
        "doctor", config_, "--root", machine, "--bad", bad, "--good", good};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  };
  const Ended well = examine({"run.dir=" + path("run")});
  EXPECT_EQ(well.code, 0) << well.out << well.error;
  EXPECT_EQ(read_text(bad), "");
  EXPECT_EQ(read_text(good).back(), '\n');
  EXPECT_NE(well.out.find("not checked: "), std::string::npos) << well.out;
  EXPECT_FALSE(fs::exists(path("run")));
  const Ended degrees = examine({"parallel.tensor=3"});
  EXPECT_EQ(degrees.code, 2) << degrees.error;
  EXPECT_NE(degrees.out.find("bad   config             argument 'parallel.tensor=3'"),
            std::string::npos)
      << degrees.out;
  // No file system, and so no shared memory, is below the folder that stands for the root.
  const Ended sick = run({"doctor", "--root", path("none"), "--bad", bad, "--good", good});
  EXPECT_EQ(sick.code, 5) << sick.error;
  EXPECT_NE(sick.out.find("bad   /dev/shm"), std::string::npos) << sick.out;
  EXPECT_EQ(read_text(good), "");
  EXPECT_EQ(read_text(bad).back(), '\n');
}

TEST_F(Cli, PlanSaysWhatAResumeWouldChangeAndFailsWhereTrainWould) {
  const auto plan = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"plan", "--resume", config_, "run.dir=" + path("run")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  };
  const Ended early = plan({});
  EXPECT_EQ(early.code, 0) << early.error;
  EXPECT_NE(early.out.find("holds no checkpoint: the run starts from step 0"), std::string::npos);
  EXPECT_NE(early.out.find("  model.rope_theta"), std::string::npos) << early.out;
  ASSERT_EQ(train("run").code, 0);

  EXPECT_NE(plan({}).out.find("nothing differs"), std::string::npos);
  const Ended allowed = plan({"schedule.steps=80"});
  EXPECT_EQ(allowed.code, 0) << allowed.error;
  EXPECT_NE(allowed.out.find("schedule.steps is 80 and was 40; the learning rate of step 40 was "),
            std::string::npos)
      << allowed.out;
  const Ended key = plan({"model.rope_theta=20000"});
  EXPECT_EQ(key.code, 2) << key.error;
  EXPECT_NE(key.out.find("refused  model.rope_theta is 20000 and was 10000"), std::string::npos)
      << key.out;
  EXPECT_EQ(key.code, train("run", {"model.rope_theta=20000"}).code);
  const Ended layers = plan({"model.num_layers=1"});
  EXPECT_EQ(layers.code, 4) << layers.error;
  EXPECT_NE(layers.out.find("model.layers.1.self_attn.q_proj.weight"), std::string::npos);
  EXPECT_EQ(layers.code, train("run", {"model.num_layers=1"}).code);
}

TEST_F(Cli, ADamagedCheckpointIsPassedOverByName) {
  ASSERT_EQ(train("run").code, 0);
  const auto damage = [&](const std::string& step) {
    std::fstream file(path("run/" + step + "/model.safetensors"),
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(20000);
    file.put('\x7f');
    file.put('\x01');
  };
  damage("step-00000040");
  const Ended older = train("run", {"schedule.steps=41"});
  EXPECT_EQ(older.code, 0) << older.error;
  EXPECT_NE(older.error.find("step-00000040"), std::string::npos) << older.error;
  EXPECT_NE(older.error.find("checksum"), std::string::npos) << older.error;
  for (const char* step : {"step-00000020", "step-00000040", "step-00000041"}) {
    if (fs::exists(path(std::string("run/") + step))) {
      damage(step);
    }
  }
  EXPECT_EQ(train("run", {"schedule.steps=42"}).code, 4);
}

TEST_F(Cli, ANumberThatIsTooSmallIsRefusedWithTheLeast) {
  const Ended ended = run({"plan", config_, "--ranks", "0"});
  EXPECT_EQ(ended.code, 2) << ended.error;
  EXPECT_NE(ended.error.find("--ranks: 0 is too small; give 1 or more"), std::string::npos)
      << ended.error;
  for (const char* option : {"--temperature", "--top-p", "--min-p", "--repetition-penalty"}) {
    const Ended none = run({"generate", path("nothing"), "--prompt", "a", option, "nan"});
    EXPECT_EQ(none.code, 2) << option << ": what is no number is no other value's word";
    EXPECT_NE(none.error.find(option), std::string::npos) << none.error;
  }
}

TEST_F(Cli, AReportTakesThePlaceOfAReportAlone) {
  ASSERT_EQ(train("run").code, 0);
  const std::string metrics = read_text(path("run/metrics.jsonl"));
  EXPECT_EQ(run({"report", path("run"), "-o", path("run/metrics.jsonl")}).code, 2);
  EXPECT_EQ(read_text(path("run/metrics.jsonl")), metrics);
  EXPECT_EQ(run({"report", path("run"), "-o", path("run")}).code, 2);
  ASSERT_EQ(run({"report", path("run"), "-o", path("a.html")}).code, 0);
  fs::create_symlink(path("a.html"), path("b.html"));
  EXPECT_EQ(run({"report", path("run"), "-o", path("b.html")}).code, 0);
  EXPECT_TRUE(fs::is_symlink(path("b.html")));
  EXPECT_TRUE(read_text(path("a.html")).starts_with("<!DOCTYPE html>"));
}

TEST_F(Cli, AnExportHasTheLogitsOfItsRun) {
  ASSERT_EQ(train("run").code, 0);
  const std::string tokens = directory_.write("tokens.json", "{\"tokens\": [[1, 5, 0, 258, 77]]}");
  ASSERT_EQ(run({"export", path("run"), path("model")}).code, 0);
  ASSERT_EQ(run({"logits", path("run"), tokens, path("a.npy")}).code, 0);
  ASSERT_EQ(run({"logits", path("model"), tokens, path("b.npy")}).code, 0);
  EXPECT_TRUE(same("a.npy", "b.npy"));
  const std::string before = read_text(path("model/model.safetensors"));
  EXPECT_NE(before.find("lm_head.weight"), std::string::npos);
  EXPECT_EQ(run({"export", path("run"), path("model")}).code, 4);
  EXPECT_EQ(read_text(path("model/model.safetensors")), before);

  const std::string outside = directory_.write("outside.json", "{\"tokens\": [[1, 259]]}");
  const Ended refused = run({"logits", path("model"), outside, path("c.npy")});
  EXPECT_EQ(refused.code, 3) << refused.error;
  EXPECT_NE(refused.error.find("outside the vocabulary [0, 259)"), std::string::npos);
  EXPECT_FALSE(fs::exists(path("c.npy")));

  const std::vector<std::string> generate = {
      "generate", path("run"), "--prompt", "grok ", "--tokens", "24"};
  const Ended text = run(generate);
  EXPECT_EQ(text.code, 0) << text.error;
  EXPECT_EQ(text.out.rfind("grok ", 0), 0U);
  EXPECT_EQ(text.out, run(generate).out);
}

TEST_F(Cli, AnErrorHasItsExitCodeAndWritesNothing) {
  const auto tree = [&] {
    std::set<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(directory_.path())) {
      if (entry.path().filename().string().rfind("process-", 0) != 0) {
        names.insert(entry.path().string());
      }
    }
    return names;
  };
  const auto before = tree();
  EXPECT_EQ(train("run", {"optimizer.learning_rat=1"}).code, 2);
  EXPECT_EQ(train("run", {"batch.micro_batch=3"}).code, 2);
  EXPECT_EQ(train("run", {"data.train=[" + path("missing.txt") + "]"}).code, 3);
  EXPECT_EQ(run({"train"}).code, 2);
  EXPECT_EQ(run({"export", path("missing"), path("out")}).code, 4);
  EXPECT_EQ(run({"plan", config_}).code, 0);
  EXPECT_EQ(tree(), before);
}

TEST_F(Cli, BenchStepPrintsOneObject) {
  const Ended bench = run({"bench", "step", config_, "--json", "--steps", "3"});
  ASSERT_EQ(bench.code, 0) << bench.error;
  const auto object = parse_json(bench.out).value();
  const double rate = object["model_flops_per_second"];
  const double yardstick = object["matmul_flops_per_second"];
  EXPECT_GT(object["tokens_per_second"].get<double>(), 0);
  EXPECT_GE(object["tokens_per_second_without_optimizer"].get<double>(),
            object["tokens_per_second"].get<double>());
  EXPECT_NEAR(object["ratio"].get<double>(), rate / yardstick, 1e-9);
  // Ops make the model's products, and in attention's backward pass one again.
  double flops = 0;
  for (const auto& op : object["ops"]) {
    flops += op["flops"].get<double>();
    EXPECT_GT(op["calls"].get<std::int64_t>(), 0) << op;
    EXPECT_GE(op["least_seconds"].get<double>(), 0) << op;
  }
  const double model_flops = rate * object["seconds_per_step"].get<double>();
  EXPECT_GT(flops, model_flops);
  EXPECT_LT(flops, 1.25 * model_flops);
  // Kinds are all ops once more.
  double seconds = 0;
  double least = 0;
  for (const auto& op : object["ops"]) {
    seconds += op["seconds"].get<double>();
    least += op["least_seconds"].get<double>();
  }
  std::set<std::string> kinds;
  for (const auto& kind : object["kinds"]) {
    EXPECT_TRUE(kinds.insert(kind["op"].get<std::string>()).second) << kind;
    seconds -= kind["seconds"].get<double>();
    least -= kind["least_seconds"].get<double>();
  }
  EXPECT_NEAR(seconds, 0, 1e-9);
  EXPECT_NEAR(least, 0, 1e-9);
  for (const char* kind : {"attention",
                           "experts",
                           "dense products",
                           "norms",
                           "routing",
                           "loss",
                           "embedding",
                           "optimizer"}) {
    EXPECT_TRUE(kinds.contains(kind)) << kind;
  }
  EXPECT_GT(object["seconds_between_ops"].get<double>(), 0);
  EXPECT_GE(object["ratio_without_optimizer"].get<double>(), object["ratio"].get<double>());
  EXPECT_FALSE(object.contains("watts")) << "which is a GPU's";
  EXPECT_EQ(object["matmul_library"].get<std::string>().rfind("loops compiled for ", 0), 0U)
      << object;
  EXPECT_FALSE(fs::exists(path("run")));
}

// It chooses within what memory.budget_gib says, never exchanges what was asked for, and says both.
TEST_F(Cli, PlanPrintsWhetherItFitsAndWhatItComputesAgain) {
  const auto plan = [&](const std::string& recompute, const std::string& budget) {
    return run({"plan", config_, "memory.recompute=" + recompute, "memory.budget_gib=" + budget})
        .out;
  };
  const std::string roomy = plan("auto", "1");
  EXPECT_NE(roomy.find("computed again in the backward pass: nothing\n"), std::string::npos);
  EXPECT_NE(roomy.find("\nfits: "), std::string::npos) << roomy;
  EXPECT_NE(roomy.find(" of 1.00 GiB of memory.budget_gib\n"), std::string::npos) << roomy;
  if (!device_available(Device::cuda)) {
    const std::string larger =
        run({"plan", config_, "run.device=cuda", "memory.budget_gib=131"}).out;
    EXPECT_NE(larger.find(" of 131.00 GiB of memory.budget_gib\n"), std::string::npos) << larger;
  }
  const std::string tight = plan("auto", "0.0001");
  EXPECT_NE(tight.find("computed again in the backward pass: whole blocks in all "),
            std::string::npos)
      << tight;
  EXPECT_NE(tight.find("\ndoes not fit: "), std::string::npos) << tight;
  EXPECT_NE(plan("geglu", "0.0001").find("backward pass: geglu in all "), std::string::npos);
  // What is free here is less than a budget that is too large.
  EXPECT_NE(plan("auto", "1000000").find(" free on this machine for one rank\n"),
            std::string::npos);
}

// The number behind `words` in `text`.
double number_after(const std::string& text, const std::string& words) {
  const std::size_t at = text.find(words);
  EXPECT_NE(at, std::string::npos) << words << "\n" << text;
  return at == std::string::npos ? 0 : std::stod(text.substr(at + words.size()));
}

// A projection, said to be one; of several kinds of ranks the slower ones set the pace.
TEST_F(Cli, PlanPrintsHowLongAStepTakesOnAMachine) {
  const auto plan = [&](const std::string& machine) {
    return run({"plan",
                "configs/bench_grok_mini.yaml",
                "--ranks",
                "8",
                "--machine",
                machine,
                "batch.global_batch=64"});
  };
  const Ended h100 = plan("h100_sxm");
  ASSERT_EQ(h100.code, 0) << h100.error;
  const std::string projection = "(8 ranks), not measured: ";
  const double seconds = number_after(h100.out, projection);
  EXPECT_GT(seconds, 0);
  for (const char* part : {"\nprojection for H100 SXM 80 GB (8 ranks), not measured: ",
                           " TFLOP/s of the model a rank, MFU ",
                           "\nwhat binds it is ",
                           "\na failure every ",
                           " J a token; schedule.steps ",
                           "\none rank at 0.9 of the others' rate would cost "}) {
    EXPECT_NE(h100.out.find(part), std::string::npos) << part << h100.out;
  }
  EXPECT_EQ(h100.out.find("a part alone would take"), std::string::npos);

  const Ended mixed = plan("h200_sxm:2,h100_sxm:6");
  ASSERT_EQ(mixed.code, 0) << mixed.error;
  EXPECT_GE(number_after(mixed.out, projection), seconds);
  EXPECT_NEAR(number_after(mixed.out, "  H100 SXM 80 GB              6 ranks "), seconds, 1e-9);
  EXPECT_NE(mixed.out.find(" of 79.10 GiB of H200 SXM 141 GB and H100 SXM 80 GB\n"),
            std::string::npos)
      << mixed.out;

  const Ended wrong = plan("h100_sxm:6,h200_sxm:3");
  EXPECT_EQ(wrong.code, 2) << wrong.error;
  EXPECT_NE(wrong.error.find("has 9 ranks, and --ranks is 8"), std::string::npos) << wrong.error;
  const Ended unknown = plan("h100_sxn");
  EXPECT_NE(unknown.error.find("did you mean h100_sxm?"), std::string::npos) << unknown.error;
}

// What it prints is a machine's file.
TEST_F(Cli, BenchMachineMeasuresWhatPlanReads) {
  const Ended measured = run({"bench", "machine", "--device", "cpu"});
  ASSERT_EQ(measured.code, 0) << measured.error;
  const std::string file = directory_.write("here.yaml", measured.out);
  EXPECT_GT(number_after(measured.out, "  large_f32_tflops: "), 0);
  EXPECT_NE(measured.out.find("in a job of 1 rank, 1 on each machine"), std::string::npos);
  const Ended plan = run({"plan", config_, "run.device=cpu", "--machine", file});
  ASSERT_EQ(plan.code, 0) << plan.error;
  EXPECT_GT(number_after(plan.out, "(1 rank), not measured: "), 0);

  EXPECT_EQ(run({"bench", "machine", "--device", "gpu"}).code, 2);
  const Ended unknown = run({"bench", "machine", "--device", "cpu", "--like", "h100_sxn"});
  EXPECT_NE(unknown.error.find("did you mean h100_sxm?"), std::string::npos) << unknown.error;
}

TEST_F(Cli, PlanPrintsTheStagesAndWhatBalancesThem) {
  const auto plan = [&](const std::string& stages) {
    const Ended ended = run({"plan",
                             config_,
                             "--ranks",
                             "4",
                             "model.vocab_size=2048",
                             "model.num_layers=8",
                             "batch.global_batch=32",
                             "parallel.pipeline=2",
                             "parallel.stages=" + stages});
    EXPECT_EQ(ended.code, 0) << ended.error;
    return ended.out;
  };
  const std::string kImbalance = "the TFLOP of the largest rank are ";
  const std::string kBubble = "and the bubble is ";
  const std::string even = plan("[]");
  EXPECT_NE(even.find("\n  pipeline            2   ranks 0, 2\n"), std::string::npos) << even;
  EXPECT_NE(even.find("schedule 1f1b, chunks 1;"), std::string::npos) << even;
  EXPECT_NE(even.find("  embedding, layers 0 to 3\n"), std::string::npos) << even;
  EXPECT_NE(even.find("  layers 4 to 7, head\n"), std::string::npos) << even;
  EXPECT_NE(even.find("it would be 20.00 % if all stages cost the same"), std::string::npos)
      << "1 of m + 1 passes, of 4 micro-batches\n"
      << even;
  // The head is more than five layers.
  const std::string key = "\nparallel.stages=";
  const std::size_t at = even.find(key);
  ASSERT_NE(at, std::string::npos) << even;
  const std::size_t begin = at + key.size();
  const std::string offered = even.substr(begin, even.find(' ', begin) - begin);
  const std::string balanced = plan(offered);
  EXPECT_LT(number_after(balanced, kImbalance), number_after(even, kImbalance));
  EXPECT_LT(number_after(balanced, kBubble), number_after(even, kBubble));
  // As it was promised.
  EXPECT_EQ(number_after(balanced, kImbalance), number_after(even.substr(begin), kImbalance));
  EXPECT_EQ(number_after(balanced, kBubble), number_after(even.substr(begin), kBubble));
  EXPECT_NE(balanced.find("no layout of stages that was tried takes less time\n"),
            std::string::npos)
      << balanced;
}

// What fits is what the rank needs that needs most.
TEST_F(Cli, PlanOfAPipelineHasTheMemoryOfItsLargestRank) {
  const auto plan = [&](const std::string& stages, const std::string& budget) {
    return run({"plan",
                config_,
                "--ranks",
                "2",
                "model.num_layers=8",
                "parallel.pipeline=2",
                "parallel.stages=" + stages,
                "memory.recompute=none",
                "memory.budget_gib=" + budget})
        .out;
  };
  const std::string last = plan("[1, 7]", "1");
  EXPECT_NE(last.find("memory of the rank that takes most (1 along pipeline) on its device\n"),
            std::string::npos)
      << last;
  EXPECT_NE(plan("[7, 1]", "1").find("(0 along pipeline)"), std::string::npos);
  // Between what the two take.
  const auto mebibytes = [&](const std::string& row) {
    const std::size_t end = last.find(" MiB  " + row);
    EXPECT_NE(end, std::string::npos) << last;
    return std::stod(last.substr(last.rfind(' ', end - 1)));
  };
  const double small = mebibytes("embedding, layer 0\n");
  const double large = mebibytes("layers 1 to 7, head\n");
  EXPECT_LT(small, large);
  EXPECT_NE(plan("[1, 7]", std::to_string((small + large) / 2 / 1024)).find("\ndoes not fit: "),
            std::string::npos);
}

// Each way as it is printed makes the plan fit; where there is room nothing is offered.
TEST_F(Cli, PlanPrintsWhatWouldMakeItFit) {
  const auto plan = [&](const std::string& budget, const std::string& more) {
    std::vector<std::string> arguments = {"plan",
                                          config_,
                                          "memory.recompute=none",
                                          "memory.budget_gib=" + budget,
                                          "checkpoint.background=never"};
    if (!more.empty()) {
      arguments[2] = more;
    }
    return run(arguments).out;
  };
  const std::string kOffer = "\nwhat makes it fit, the cheapest first, ";
  EXPECT_EQ(plan("1", "").find(kOffer), std::string::npos);
  const double needed = number_after(plan("1", ""), "\nfits: ");  // MiB
  const std::string budget = std::to_string(0.95 * needed / 1024);
  const std::string tight = plan(budget, "");
  EXPECT_NE(tight.find("\ndoes not fit: "), std::string::npos) << tight;
  const std::size_t at = tight.find(kOffer);
  ASSERT_NE(at, std::string::npos) << tight;
  const std::size_t first = tight.find("\n  ", at) + 3;
  const std::string offered = tight.substr(first, tight.find('\n', first) - first);
  EXPECT_EQ(offered, "memory.recompute=auto") << tight;
  EXPECT_NE(plan(budget, offered).find("\nfits: "), std::string::npos) << offered;
  EXPECT_NE(plan("0.000001", "").find("\nnothing that was tried on 1 rank makes it fit"),
            std::string::npos);
}

// A run that is refused says the same.
TEST_F(Cli, TrainSaysWhatWouldMakeItFit) {
  const Ended ended = train("run", {"memory.recompute=none", "memory.budget_gib=0.001"});
  EXPECT_EQ(ended.code, 5) << ended.error;
  EXPECT_NE(ended.error.find("makes it fit"), std::string::npos) << ended.error;
}

TEST_F(Cli, PlanPrintsTheMemoryTable) {
  const Ended plan = run({"plan", config_});
  EXPECT_EQ(plan.code, 0) << plan.error;
  EXPECT_EQ(plan.out.find("bubble"), std::string::npos) << "a model in one stage has none";
  for (const char* row : {"weights",
                          "gradients",
                          "moments",
                          "activations",
                          "communication",
                          "total",
                          "host memory",
                          "batches"}) {
    EXPECT_NE(plan.out.find(row), std::string::npos) << row;
  }
}

}  // namespace
}  // namespace memphis::test
