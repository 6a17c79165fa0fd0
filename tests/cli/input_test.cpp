// SPDX-License-Identifier: Apache-2.0
//
// What users give the program to read, as they give it: text that changes, folders of many kinds of
// files, configs from pipes, paths that a shell would expand.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

class Input : public testing::Test {
 protected:
  Input() { config_ = directory_.write("tiny.yaml", tiny_yaml(directory_)); }

  // Of a shell, in the test's directory; $M is the program and $C its config.
  Ended shell(const std::string& script) const {
    return run_to_end({"/bin/bash",
                       "-c",
                       "export OMP_NUM_THREADS=1; cd " + directory_.path().string() +
                           "; M=" MEMPHIS_BINARY "; C=" + config_ + "; " + script},
                      directory_.path());
  }
  std::string path(const std::string& name) const { return (directory_.path() / name).string(); }
  bool exists(const std::string& name) const { return fs::exists(path(name)); }

  TemporaryDirectory directory_;
  std::string config_;
};

void expect_holds(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "`" << part << "` is not in:\n" << text;
}
void expect_lacks(const std::string& text, const std::string& part) {
  EXPECT_EQ(text.find(part), std::string::npos) << "`" << part << "` is in:\n" << text;
}

TEST_F(Input, TextThatIsCutShortEndsTheRunWithItsNameAndWhatWasLearntIsSaved) {
  const std::string text = path("text.txt");
  const std::string whole = read_text(text);
  Process process({MEMPHIS_BINARY,
                   "train",
                   config_,
                   "schedule.steps=1000000",
                   "schedule.warmup_steps=0",
                   "checkpoint.every=0",
                   "metrics.validate_every=0"},
                  directory_.path());
  const fs::path metrics = path("run/metrics.jsonl");
  const auto has_a_step = [&] {
    return fs::exists(metrics) && read_text(metrics).find("\"loss\"") != std::string::npos;
  };
  while (process.running() && !has_a_step()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  fs::resize_file(text, 0);
  EXPECT_EQ(process.wait(), 3);
  const std::string error = process.standard_error();
  expect_holds(error, "memphis: " + text + " has no byte ");
  expect_holds(error, " any more (it had " + std::to_string(whole.size()) + " bytes");
  expect_holds(error, "saved ");

  directory_.write("text.txt", whole);
  const Ended again = shell(
      "last=$(ls run | sed -n 's/^step-0*//p' | sort -n | tail -n 1); $M train $C "
      "schedule.steps=$((last + 1)) schedule.warmup_steps=0 run.resume=required "
      "metrics.validate_every=0");
  EXPECT_EQ(again.code, 0) << again.error;
  expect_lacks(again.error, "differs");
}

TEST_F(Input, FilesOfEveryKindAreNamedOrRead) {
  directory_.write("d/a/b/deep.txt", tiny_text());
  directory_.write("d/top.txt", tiny_text().substr(1));
  const Ended deep = shell("$M train $C schedule.steps=6 'data.train=[d/**/*.txt]'");
  EXPECT_EQ(deep.code, 0) << deep.error;
  expect_holds(deep.error, "data.train: 2 documents");

  directory_.write("d/x.gz", "\x1F\x8B\x08 and more");
  directory_.write("d/x.xz", std::string("\xFD\x37zXZ\0", 6));
  for (const char* name : {"d/x.gz", "d/x.xz", "d/*.xz"}) {
    const Ended refused =
        shell(std::string("$M train $C run.dir=none 'data.train=[") + name + "]'");
    EXPECT_EQ(refused.code, 3) << name;
    expect_holds(refused.error,
                 name == std::string("d/x.gz") ? "damaged before byte 4" : "unxz -k");
  }
  EXPECT_FALSE(exists("none"));
  const Ended folder = shell(
      "printf '{\"text\": \"a\"}\\n{\"text\": \"b\"}\\n' | gzip > d/y.gz; "
      "$M train $C run.dir=folder schedule.steps=6 data.train=[d]");
  EXPECT_EQ(folder.code, 0) << folder.error;
  expect_holds(folder.error, "data.train: passed over 2 of 4 files");
  expect_holds(folder.error, path("d/x.gz") + " (it holds gzip-compressed data");
  expect_holds(folder.error, "data.train: tokenized 2 documents, 2 bytes, to 6 tokens");
}

TEST_F(Input, ARunBesideItsTextReadsTheSameAtEveryStart) {
  directory_.write("p/text.txt", tiny_text());
  const std::string run = "cd p; $M train $C run.dir=runs/x data.train=[.] schedule.steps=";
  const auto first_line = [](const std::string& log) {
    const std::size_t at = log.find("data.train: ");
    return log.substr(at, log.find('\n', at) - at);
  };
  // What the shell writes is the program's own work too.
  const Ended first = shell(run + "6 2> log.txt; code=$?; cat log.txt >&2; exit $code");
  EXPECT_EQ(first.code, 0) << first.error;
  const Ended second = shell("rm p/log.txt; " + run + "8");
  EXPECT_EQ(second.code, 0) << second.error;
  expect_holds(first_line(first.error), "1 documents");
  EXPECT_EQ(first_line(first.error), first_line(second.error));
  expect_lacks(second.error, "differs");
  expect_holds(second.error, path("p/runs/x") + " (it is run.dir)");
}

TEST_F(Input, HomeFoldersAndVariablesArePathsAsInAShell) {
  const std::string steps = " schedule.steps=6 metrics.validate_every=0";
  const std::string home = "mkdir -p home; export HOME=$PWD/home; ";
  const Ended tilde = shell(home + "$M train $C 'run.dir=~/runs/x'" + steps);
  EXPECT_EQ(tilde.code, 0) << tilde.error;
  EXPECT_TRUE(exists("home/runs/x/step-00000006"));
  const Ended variable = shell(
      "export SCRATCH=$PWD/scratch; sed 's#dir: [^,]*#dir: $SCRATCH/y#' "
      "$C > y.yaml; $M train y.yaml" +
      steps);
  EXPECT_EQ(variable.code, 0) << variable.error;
  EXPECT_TRUE(exists("scratch/y/step-00000006"));
  for (const char* command : {"train", "plan", "bench step"}) {
    const Ended unset =
        shell(std::string("unset NONE; $M ") + command + " $C 'data.train=[$NONE/a.txt]'");
    EXPECT_EQ(unset.code, 2) << command;
    expect_holds(unset.error, "the environment variable NONE is not set");
  }
  EXPECT_FALSE(exists("~"));
  EXPECT_FALSE(exists("$SCRATCH"));
}

TEST_F(Input, AnEmptyListIsRefusedAndTheDefaultIsNamed) {
  const Ended empty = shell("FILES=; $M train $C \"data.train=[$FILES]\"");
  EXPECT_EQ(empty.code, 2) << empty.error;
  EXPECT_FALSE(exists("run"));
  const Ended own = shell(
      "sed 's/^data:.*//' $C > own.yaml; $M train own.yaml schedule.steps=6 "
      "metrics.validate_every=0 metrics.validate_batches=1");
  EXPECT_EQ(own.code, 0) << own.error;
  expect_holds(own.error, "memphis's own sources are trained on: ");
  expect_holds(own.error, "csrc");
}

TEST_F(Input, AConfigIsReadFromAPipe) {
  const Ended train = shell("$M train <(cat $C) schedule.steps=6 metrics.validate_every=0");
  EXPECT_EQ(train.code, 0) << train.error;
  const Ended plan = shell("cat $C | $M plan /dev/stdin");
  EXPECT_EQ(plan.code, 0) << plan.error;
  // The same error in every command.
  for (const char* command : {"train", "plan", "bench step"}) {
    for (const char* file : {"none.yaml", ".", "text.txt", "empty.yaml"}) {
      const Ended ended = shell(std::string(": > empty.yaml; $M ") + command + " " + file);
      EXPECT_EQ(ended.code, 2) << command << " " << file << ": " << ended.error;
      expect_holds(ended.error, file);
    }
  }
}

const std::string kFewSteps =
    " schedule.steps=4 schedule.warmup_steps=1 metrics.validate_every=0 -q";

// A name that was mistaken is not to cost a file that another command, or its user, wrote.
TEST_F(Input, AnOutputTakesThePlaceOfItsOwnKindAlone) {
  ASSERT_EQ(shell("$M train $C" + kFewSteps + " && $M export run ex").code, 0);
  directory_.write("tokens.json", R"({"tokens": [[1, 35, 40]]})");
  directory_.write("notes", "a line of words\n");
  const std::string logits = "timeout 900 $M logits ex tokens.json ";
  const std::string doctor = "timeout 900 $M doctor --root none --good g.txt --bad ";
  for (const std::string& command : {logits, doctor, std::string("$M report run -o ")}) {
    for (const char* file :
         {"ex/model.safetensors", "run/step-00000004/manifest.json", "notes", "ex"}) {
      const Ended ended = shell(std::string("cp -r ") + file + " before; " + command + file +
                                "; code=$?; diff -r " + file +
                                " before || exit 99; rm -r before; "
                                "exit $code");
      EXPECT_EQ(ended.code, 2) << command << file << ended.error;
      expect_holds(ended.error, std::string(file) + " is there and is no ");
    }
    const Ended nowhere = shell(command + "none/file");
    EXPECT_EQ(nowhere.code, 2) << nowhere.error;
    expect_holds(nowhere.error, "lies in none, which is no folder");
  }
  ASSERT_EQ(shell(logits + "a.npy && " + logits + "a.npy").code, 0) << "an array is replaced";
  const Ended piped = shell("mkfifo pipe; cat pipe > b.npy & " + logits + "pipe; code=$?; wait; " +
                            "[ -p pipe ] && cmp a.npy b.npy && exit $code");
  EXPECT_EQ(piped.code, 0) << piped.out << piped.error;
  // As /dev/stdout, which a fault must not take away from the whole machine.
  const Ended stream = shell("ln -s /proc/self/fd/1 out; " + logits + "out | cmp - a.npy");
  EXPECT_EQ(stream.code, 0) << stream.out << stream.error;
  const Ended linked =
      shell("ln -s c.npy link; " + logits + "link && [ -L link ] && cmp a.npy c.npy");
  EXPECT_EQ(linked.code, 0) << linked.error;

  EXPECT_EQ(shell(doctor + "g.txt").code, 2) << "one list would take the place of the other";
  EXPECT_FALSE(exists("g.txt"));
  directory_.write("d.meta.json", "mine");
  const Ended meta = shell("$M tokenize text.txt --tokenizer byte --output d");
  EXPECT_EQ(meta.code, 2) << meta.error;
  EXPECT_EQ(read_text(path("d.meta.json")), "mine");
}

TEST_F(Input, AnOutputThatCannotBeWrittenIsNoCheckpoint) {
  ASSERT_EQ(shell("$M train $C" + kFewSteps).code, 0);
  directory_.write("tokens.json", R"({"tokens": [[1, 35, 40]]})");
  // No file can be made there, by anybody.
  for (const char* command : {"logits run tokens.json /proc/memphis",
                              "report run -o /proc/memphis",
                              "doctor --bad /proc/memphis --good g.txt"}) {
    const Ended ended = shell(std::string("$M ") + command);
    EXPECT_EQ(ended.code, 5) << command << ": " << ended.error;
    expect_holds(ended.error, "cannot write /proc/memphis");
  }
}

// What a start writes there is the config with all its keys, and none of its comments.
TEST_F(Input, AConfigThatNoRunWroteStays) {
  const Ended here = shell("cp $C config.yaml; $M train config.yaml run.dir=." + kFewSteps);
  EXPECT_EQ(here.code, 2) << here.error;
  expect_holds(here.error, "run.dir . has a config.yaml that no run wrote");
  EXPECT_EQ(shell("cmp config.yaml $C").code, 0);
  EXPECT_FALSE(exists("nothing-saved-yet"));
  ASSERT_EQ(shell("$M train $C run.dir=r" + kFewSteps).code, 0);
  const Ended again = shell("$M train r/config.yaml schedule.steps=6 -q");
  EXPECT_EQ(again.code, 0) << again.error;
  EXPECT_TRUE(exists("r/step-00000006"));
  const Ended earlier =
      shell("sed -i 1d r/config.yaml; $M train r/config.yaml schedule.steps=8 -q");
  EXPECT_EQ(earlier.code, 0) << "a run of an earlier version goes on: " << earlier.error;
}

TEST_F(Input, WhatHasTheNameOfARunsFileIsNotWaitedFor) {
  ASSERT_EQ(shell("$M train $C run.dir=r" + kFewSteps).code, 0);
  for (const char* name : {"lock", "metrics.jsonl", "config.yaml", "nothing-saved-yet"}) {
    const std::string file = std::string("r/") + name;
    const Ended ended = shell(
        "mv " + file + " away; mkfifo " + file +
        "; timeout 900 $M train $C run.dir=r schedule.steps=5 schedule.warmup_steps=1 -q; code=$?; "
        "timeout 900 $M plan --resume $C run.dir=r >/dev/null || code=99; rm " +
        file + "; mv away " + file + "; exit $code");
    EXPECT_EQ(ended.code, 2) << name << ": " << ended.error;
    expect_holds(ended.error, file + " is no file");
  }
}

TEST_F(Input, WhatAKilledStartLeftBesideItsFilesIsRemoved) {
  for (const char* name :
       {"config.yaml.tmp-17", "metrics.jsonl.tmp-18", "nothing-saved-yet.tmp-1"}) {
    directory_.write(std::string("run/") + name, "half");
  }
  directory_.write("run/notes.tmp-17", "mine");
  const Ended ended = shell("$M train $C" + kFewSteps + "; ls run");
  expect_holds(ended.error, "removed " + path("run/config.yaml.tmp-17"));
  expect_lacks(ended.out, "config.yaml.tmp");
  expect_lacks(ended.out, "metrics.jsonl.tmp");
  expect_lacks(ended.out, "yet.tmp");
  expect_holds(ended.out, "notes.tmp-17");
}

// The next file that is opened would have the number of a stream that is closed.
TEST_F(Input, AClosedStreamIsNoFileOfTheProgram) {
  const std::string tokenize = "$M tokenize text.txt --tokenizer byte --output ";
  ASSERT_EQ(shell(tokenize + "whole").code, 0);
  for (const char* closed : {"2>&-", "<&- 2>&-", "<&- >&- 2>&-"}) {
    const Ended ended = shell("rm -f part.*; " + tokenize + "part " + closed +
                              "; cmp whole.bin part.bin && cmp whole.idx part.idx");
    EXPECT_EQ(ended.code, 0) << closed << ": " << ended.out;
    const Ended trained =
        shell("rm -rf run; $M train $C schedule.steps=4 schedule.warmup_steps=1 " +
              std::string(closed) + "; echo $?; ls run");
    expect_holds(trained.out, "0\n");
    expect_holds(trained.out, "step-00000004");
  }
  EXPECT_EQ(shell(tokenize + "lost >&-").code, 5) << "what it prints is lost";
}

TEST_F(Input, AnEmptyArgumentIsRefused) {
  ASSERT_EQ(shell("$M train $C" + kFewSteps).code, 0);
  for (const char* command : {"plan $C --search --machine ''",
                              "plan $C --machine ''",
                              "plan ''",
                              "bench machine --like ''",
                              "bench kernels --filter ''",
                              "generate run --prompts ''",
                              "tokenize text.txt --tokenizer byte --output x --prompt-field ''",
                              "tokenize '' --tokenizer byte --output x",
                              "docs config ''",
                              "doctor ''",
                              "doctor --bad ''",
                              "report run -o ''",
                              "export run ''",
                              "plan $C ''"}) {
    const Ended ended = shell(std::string("$M ") + command);
    EXPECT_EQ(ended.code, 2) << command << ": " << ended.error;
    expect_holds(ended.error, " is given an empty text (");
  }
  EXPECT_EQ(shell("$M generate run --prompt '' --tokens 2").code, 0) << "text from nothing";
}

TEST_F(Input, ANumberIsSpeltAsInAConfig) {
  struct Case {
    const char* command;
    const char* part;
  };
  for (const Case& each :
       {Case{"plan $C --ranks 010",
             "--ranks is 010 (some readers take a leading zero as octal); "
             "write 10, or 8 if octal was meant"},
        Case{"plan $C --ranks 2147483648", "2147483648 is too large; give at most 2147483647"},
        Case{"generate run --prompt a --tokens 0x10", "--tokens is 0x10"},
        Case{"generate run --prompt a --temperature 0x1p3", "--temperature is 0x1p3"},
        Case{"generate run --prompt a --top-p .5", "write 0.5"},
        Case{"generate run --prompt a --seed -1", "--seed: -1 is too small; give 0 or more"},
        Case{"generate run --prompt a --seed 99999999999999999999", "is too large"},
        Case{"evaluate run text.txt --length 010", "--length is 010"},
        Case{"evaluate run text.txt --batch 1e3", "write 1000"},
        Case{"bench step $C --steps 010", "--steps is 010"}}) {
    const Ended ended = shell(std::string("$M ") + each.command);
    EXPECT_EQ(ended.code, 2) << each.command << ": " << ended.error;
    expect_holds(ended.error, each.part);
  }
  // It has the degrees of a divisor to name, and not all smaller numbers to try, which takes hours of the
  // processor's time.
  const Ended many = shell("ulimit -t 60; $M plan $C --ranks 2147483647 parallel.pipeline=2");
  EXPECT_EQ(many.code, 2) << many.error;
}

TEST_F(Input, JsonThatNestsTooDeepIsNoJson) {
  ASSERT_EQ(shell("$M train $C" + kFewSteps).code, 0);
  const std::string deep(200'000, '[');
  directory_.write("deep.json", R"({"tokens": [[)" + deep + std::string(200'000, ']') + "]]}");
  const Ended logits = shell("$M logits run deep.json out.npy");
  EXPECT_EQ(logits.code, 3) << logits.error;
  expect_holds(logits.error, "deep.json: it has no array `tokens`");
  std::ofstream(path("run/metrics.jsonl"), std::ios::app)
      << R"({"step": 4, "expert_load": )" << deep << std::string(200'000, ']') << "}\n";
  EXPECT_EQ(shell("$M report run -o page.html").code, 0);
  const Ended again = shell("$M train $C schedule.steps=5 schedule.warmup_steps=1 -q");
  EXPECT_EQ(again.code, 0) << again.error;
}

TEST_F(Input, AFolderThatIsGoneIsNamed) {
  for (const char* command : {"train $C", "plan $C", "doctor", "report run"}) {
    const Ended ended =
        shell("mkdir gone; cd gone; rmdir ../gone; " + std::string("$M ") + command);
    EXPECT_EQ(ended.code, 5) << command << ": " << ended.error;
    expect_holds(ended.error, "the current folder is not there any more");
  }
  EXPECT_EQ(shell("mkdir gone; cd gone; rmdir ../gone; $M train --help").code, 0);
}

TEST_F(Input, RowsThatAreLongerThanTheModelAreRefused) {
  ASSERT_EQ(shell("$M train $C model.max_sequence_length=32" + kFewSteps).code, 0);
  const auto row = [](int length) {
    std::string text = "1";
    for (int i = 1; i < length; ++i) {
      text += ", 35";
    }
    return R"({"tokens": [[)" + text + "]]}";
  };
  directory_.write("fits.json", row(32));
  directory_.write("long.json", row(33));
  EXPECT_EQ(shell("$M logits run fits.json fits.npy").code, 0);
  const Ended refused = shell("$M logits run long.json long.npy");
  EXPECT_EQ(refused.code, 3) << refused.error;
  expect_holds(refused.error, "rows of 33 tokens and the model's max_position_embeddings is 32");
  EXPECT_FALSE(exists("long.npy"));
}

TEST_F(Input, AdviceIsOfWhatWasGiven) {
  ASSERT_EQ(shell("$M train $C" + kFewSteps).code, 0);
  const Ended empty = shell(": > empty.txt; $M evaluate run empty.txt");
  EXPECT_EQ(empty.code, 3) << empty.error;
  expect_lacks(empty.error, "the config");
  const Ended machine = shell(
      "cp $(dirname $M)/../../configs/machines/cpu.yaml mine.txt; $M plan $C --machine mine.txt");
  EXPECT_EQ(machine.code, 0) << machine.error;
  expect_holds(machine.out, "a step");
  const Ended longer =
      shell("$M train $C schedule.steps=5 schedule.warmup_steps=1 batch.sequence_length=30");
  EXPECT_EQ(longer.code, 2) << longer.error;
  expect_holds(longer.error, "batch.sequence_length=32 (or ");
  expect_lacks(longer.error, "(or 32");
  expect_lacks(longer.error, "or 32)");

  directory_.write("both/a.txt", tiny_text());
  directory_.write("both/b.txt", tiny_text().substr(1));
  const Ended twice = shell(
      "$M train $C run.dir=t schedule.steps=2 schedule.warmup_steps=1 'data.train=[both]' "
      "'data.validation=[both/b.txt]'");
  EXPECT_EQ(twice.code, 0) << twice.error;
  const std::size_t first = twice.error.find("are in data.validation too");
  ASSERT_NE(first, std::string::npos) << twice.error;
  EXPECT_EQ(twice.error.find("are in data.validation too", first + 1), std::string::npos)
      << twice.error;
}

}  // namespace
}  // namespace memphis::test
