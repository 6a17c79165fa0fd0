// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/validate.h"

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "tests/config/bad_config.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

using test::here;
using test::kTiny;
using test::with;
using test::with_model;

std::vector<test::BadConfig> bad_configs() {
  return {
      {"size not given",
       "schedule:\n  steps: 10\n",
       {},
       ExitCode::config,
       "tiny.yaml: model.vocab_size is not given (it has no default); add it, or a "
       "model.preset"},
      {"steps not given",
       "model:\n  preset: grok-1\n",
       {},
       ExitCode::config,
       "tiny.yaml: schedule.steps is not given (it has no default); add it"},
      {"heads not divisible by kv heads",
       with_model("  num_kv_heads: 3\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads 3 does not divide model.num_heads 4 (a key/value "
       "head serves equally many query heads as any other); use 2 or 4"},
      {"more kv heads than heads",
       with_model("  num_kv_heads: 8\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads 8 does not divide model.num_heads 4 (a key/value "
       "head serves equally many query heads as any other); use 4"},
      {"width not divisible by heads",
       kTiny,
       {"model.num_heads=3"},
       ExitCode::config,
       "argument 'model.num_heads=3': model.num_heads 3 does not divide model.d_model 64 "
       "(without model.head_dim, a head is d_model / num_heads wide); use 2 or 4, or give "
       "model.head_dim"},
      {"odd head",
       with_model("  head_dim: 7\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:13: model.head_dim 7 is odd (the rotary embedding turns pairs of "
       "elements); use 6 or 8"},
      {"more experts per token than experts",
       with_model("  experts_per_token: 5\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:22: model.experts_per_token 5 exceeds model.num_experts 4 (a token "
       "visits an expert at most once); use at most 4"},
      {"vocabulary smaller than the tokenizer",
       kTiny,
       {"model.vocab_size=200"},
       ExitCode::config,
       "argument 'model.vocab_size=200': model.vocab_size 200 is smaller than the byte "
       "tokenizer's 259 (256 bytes and 3 special tokens); use at least 259"},
      {"pad outside the vocabulary",
       with_model("  pad_id: 512\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:11: model.pad_id 512 is not below model.vocab_size 512 (it is the id of "
       "a token); use 0, or -1 for none"},
      {"temperature of one position",
       with_model("  attention_temperature_len: 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:30: model.attention_temperature_len is 1 (the temperature divides by "
       "its logarithm); use 0 for none, or at least 2"},
      {"positions fewer than trained on",
       with_model("  max_sequence_length: 128\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:24: model.max_sequence_length 128 is shorter than batch.sequence_length "
       "256 (the model is trained on that many positions); use at least 256"},
      {"global batch not a multiple",
       with("batch:\n  micro_batch: 4\n  global_batch: 10\n"),
       {},
       ExitCode::config,
       "tiny.yaml:12:17: batch.global_batch 10 is not a multiple of batch.micro_batch 4 "
       "(gradients accumulate over whole micro-batches); use 8 or 12"},
      {"global batch smaller",
       with("batch:\n  micro_batch: 32\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:16: batch.global_batch 16 is not a multiple of batch.micro_batch 32 "
       "(gradients accumulate over whole micro-batches); use 32"},
      {"warm-up as long as the run",
       with("run: {}\n"),
       {"schedule.warmup_steps=100"},
       ExitCode::config,
       "argument 'schedule.warmup_steps=100': schedule.warmup_steps 100 is not below "
       "schedule.steps 100 (the learning rate would never leave its warm-up); use at most 99"},
      {"decay longer than what is left",
       kTiny,
       {"schedule.decay=wsd", "schedule.warmup_steps=60", "schedule.decay_steps=50"},
       ExitCode::config,
       "argument 'schedule.decay_steps=50': schedule.decay_steps 50 exceeds the 40 steps "
       "after the warm-up (the final decay starts when that is over); use at most 40"},
      {"too many parameters",
       kTiny,
       {"model.num_layers=4096",
        "model.d_model=1048576",
        "model.ffn_dim=1048576",
        "model.num_experts=4096"},
       ExitCode::config,
       "argument 'model.num_layers=4096': the model has 5.54e+19 parameters (their bytes "
       "are counted in 64 bits, with room for 7.21e+16); use smaller sizes"},
      {"too many rows",
       kTiny,
       {"batch.micro_batch=65536", "batch.global_batch=65536", "batch.sequence_length=65536"},
       ExitCode::config,
       "argument 'batch.micro_batch=65536': a micro-batch has 8589934592 rows for its "
       "experts (micro_batch * sequence_length * experts_per_token is counted in 32 bits); "
       "use a smaller batch.micro_batch"},
      {"too many activations",
       kTiny,
       {"batch.micro_batch=65536",
        "batch.global_batch=65536",
        "batch.sequence_length=4096",
        "model.d_model=1048576",
        "model.num_layers=4096"},
       ExitCode::config,
       "argument 'batch.micro_batch=65536': a micro-batch has 1.84e+19 activations (their "
       "bytes are counted in 64 bits, with room for 7.21e+16); use a smaller "
       "batch.micro_batch"},
      {"parallel degree pipeline",
       kTiny,
       {"parallel.pipeline=2"},
       ExitCode::config,
       "argument 'parallel.pipeline=2': parallel.pipeline 2 needs more than one rank (this "
       "program runs as one); use 1"},
      {"parallel degree data",
       kTiny,
       {"parallel.data=2"},
       ExitCode::config,
       "argument 'parallel.data=2': parallel.data 2 needs more than one rank (this program "
       "runs as one); use 1"},
      {"parallel degree context",
       kTiny,
       {"parallel.context=2"},
       ExitCode::config,
       "argument 'parallel.context=2': parallel.context 2 needs more than one rank (this "
       "program runs as one); use 1"},
      {"parallel degree expert",
       kTiny,
       {"parallel.expert=2"},
       ExitCode::config,
       "argument 'parallel.expert=2': parallel.expert 2 needs more than one rank (this "
       "program runs as one); use 1"},
      {"parallel degree tensor",
       kTiny,
       {"parallel.tensor=2"},
       ExitCode::config,
       "argument 'parallel.tensor=2': parallel.tensor 2 needs more than one rank (this "
       "program runs as one); use 1"},
      {"parallel degree expert_tensor",
       kTiny,
       {"parallel.expert_tensor=2"},
       ExitCode::config,
       "argument 'parallel.expert_tensor=2': parallel.expert_tensor 2 needs more than one "
       "rank (this program runs as one); use 1"},
      {"ZeRO stage",
       kTiny,
       {"parallel.zero=3"},
       ExitCode::config,
       "argument 'parallel.zero=3': parallel.zero is 3 (it is between 0 and 1); use at most "
       "1"},
      {"trace",
       with("metrics:\n  trace: true\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: metrics.trace is true (this program writes no traces); set it to "
       "false"},
      {"no run directory",
       with("run:\n  dir: \"\"\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:8: run.dir is empty (checkpoints and metrics need a directory); name "
       "one, as in runs/tiny"},
      {"empty entry",
       with("data:\n  train: [\"LICENSE\", \"\"]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:22: data.train[1] is empty (an entry is a file, a directory or a "
       "pattern); remove it"},
      {"validation from nothing",
       with("data:\n  held_out: 0\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:13: metrics.validate_every 200 has nothing to read (data.validation is "
       "empty and data.held_out is 0); give one of these, or set metrics.validate_every to 0"},
      {"run directory is a file",
       with("run:\n  dir: LICENSE\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:8: run.dir is LICENSE (" + here() +
           "/LICENSE is a file); name a directory, or a path that does not exist"},
      {"run directory below a file",
       kTiny,
       {"run.dir=LICENSE/a/b"},
       ExitCode::config,
       "argument 'run.dir=LICENSE/a/b': run.dir is LICENSE/a/b (" + here() +
           "/LICENSE is a file); name a directory, or a path that does not exist"},
      {"missing file",
       with("data:\n  train: [LICENSE, no/such.txt]\n"),
       {},
       ExitCode::data,
       "tiny.yaml:11:20: data.train[1] is no/such.txt (there is no such file, seen from " + here() +
           "); give a file, a directory or a pattern that exists"},
      {"missing validation file in an argument",
       kTiny,
       {"data.validation=[no/such.txt]"},
       ExitCode::data,
       "argument 'data.validation=[no/such.txt]': data.validation[0] is no/such.txt (there is no "
       "such file, seen from " +
           here() + "); give a file, a directory or a pattern that exists"},
      {"file as a directory",
       with("data:\n  train: [LICENSE/x]\n"),
       {},
       ExitCode::data,
       "tiny.yaml:11:11: data.train[0] is LICENSE/x (there is no such file, seen from " + here() +
           "); give a file, a directory or a pattern that exists"},
      {"pattern without a match",
       with("data:\n  train:\n    - \"*.nothing\"\n"),
       {},
       ExitCode::data,
       "tiny.yaml:12:7: data.train[0] is *.nothing (nothing matches it, seen from " + here() +
           "); give a file, a directory or a pattern that exists"},
      {"neither file nor directory",
       with("data:\n  train: [/dev/null]\n"),
       {},
       ExitCode::data,
       "tiny.yaml:11:11: data.train[0] is /dev/null (it is neither a file nor a directory); give "
       "one of these"},

  };
}

class BadCombinationTest : public testing::TestWithParam<test::BadConfig> {};

TEST_P(BadCombinationTest, IsRefused) {
  test::expect_refused(GetParam());
}

INSTANTIATE_TEST_SUITE_P(All,
                         BadCombinationTest,
                         testing::ValuesIn(bad_configs()),
                         test::case_name);

TEST(DataFiles, RefusesWhatThisUserMayNotRead) {
  if (::geteuid() == 0) {
    GTEST_SKIP() << "root reads everything";
  }
  const test::TemporaryDirectory directory;
  const std::string file = directory.write("secret/a.txt", "text");
  const std::string parent = (directory.path() / "secret").string();
  ASSERT_EQ(::chmod(file.c_str(), 0), 0);
  EXPECT_EQ(test::error_text<DataError>(
                [&] { parse_config(kTiny, "tiny.yaml", {"data.train=[" + file + "]"}); }),
            "argument 'data.train=[" + file + "]': data.train[0] is " + file +
                " (this user may not read it); change its permissions");
  ASSERT_EQ(::chmod(parent.c_str(), 0), 0);
  EXPECT_EQ(test::error_text<DataError>(
                [&] { parse_config(kTiny, "tiny.yaml", {"data.train=[" + parent + "]"}); }),
            "argument 'data.train=[" + parent + "]': data.train[0] is " + parent +
                " (this user may not list it); change its permissions");
  ::chmod(parent.c_str(), 0700);
}

TEST(DataFiles, TakesAPatternThatMatches) {
  const test::TemporaryDirectory directory;
  directory.write("a.txt", "text");
  const std::string pattern = (directory.path() / "*.txt").string();
  const Config config = parse_config(kTiny, "tiny.yaml", {"data.train=['" + pattern + "']"});
  EXPECT_EQ(config.data.train, std::vector<std::string>{pattern});
}

}  // namespace
}  // namespace memphis
