// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/scalar.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/config/bad_config.h"

namespace memphis {
namespace {

using test::kTiny;
using test::with;
using test::with_model;

std::vector<test::BadConfig> bad_configs() {
  return {
      {"octal",
       with_model("  num_kv_heads: 010\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is 010 (some readers take a leading zero as "
       "octal); write 10, or 8 if octal was meant"},
      {"leading zeros that are not octal",
       with_model("  num_kv_heads: 0098\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is 0098 (some readers take a leading zero as "
       "octal); write 98"},
      {"0o octal",
       with_model("  num_kv_heads: 0o2\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is 0o2 (an integer is written in decimal); write "
       "2"},
      {"hexadecimal",
       with_model("  num_kv_heads: 0x10\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is 0x10 (an integer is written in decimal); "
       "write 16"},
      {"grouped digits",
       with_model("  max_sequence_length: 1_000\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:24: model.max_sequence_length is 1_000 (digits are not grouped); write "
       "1000"},
      {"exponent",
       with("metrics:\n  every: 1e3\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: metrics.every is 1e3 (an integer is written in digits alone); "
       "write 1000"},
      {"fraction",
       with_model("  num_kv_heads: 3.7\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is 3.7 (its value is an integer); write a whole "
       "number"},
      {"plus sign",
       with_model("  num_kv_heads: +2\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is +2 (a plus sign is not written); write 2"},
      {"quoted integer",
       with_model("  num_kv_heads: \"2\"\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is \"2\" (its value is an integer, and what is in "
       "quotes is a string); remove the quotes"},
      {"word for an integer",
       with_model("  num_kv_heads: all\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is all (its value is an integer); write one"},
      {"bool for an integer",
       with_model("  num_kv_heads: true\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is true (its value is an integer); write one"},
      {"list for an integer",
       with_model("  num_kv_heads: [2]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is a list (its value is an integer); write one"},
      {"map for an integer",
       with_model("  num_kv_heads: {a: 2}\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is a map (its value is an integer); write one"},
      {"nothing for an integer",
       with_model("  num_kv_heads:\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:3: model.num_kv_heads is empty (its value is an integer); write one"},
      {"negative",
       with_model("  num_kv_heads: -1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:17: model.num_kv_heads is -1 (it is between 1 and 4096); use at least 1"},
      {"zero",
       kTiny,
       {"schedule.steps=0"},
       ExitCode::config,
       "argument 'schedule.steps=0': schedule.steps is 0 (it is between 1 and "
       "1099511627776); use at least 1"},
      {"overflow",
       kTiny,
       {"run.seed=9223372036854775808"},
       ExitCode::config,
       "argument 'run.seed=9223372036854775808': run.seed is 9223372036854775808 (it is "
       "between 0 and 9223372036854775806); use at most 9223372036854775806"},
      {"above the range",
       kTiny,
       {"model.vocab_size=1048577"},
       ExitCode::config,
       "argument 'model.vocab_size=1048577': model.vocab_size is 1048577 (it is between 1 "
       "and 1048576); use at most 1048576"},
      {"NaN",
       with("optimizer:\n  learning_rate: .nan\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:18: optimizer.learning_rate is .nan (a number is finite); write one "
       "that is"},
      {"infinity",
       with("optimizer:\n  clip_norm: .inf\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:14: optimizer.clip_norm is .inf (a number is finite); write one that is"},
      {"negative infinity",
       with("optimizer:\n  clip_norm: -.Inf\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:14: optimizer.clip_norm is -.Inf (a number is finite); write one that "
       "is"},
      {"beyond a double",
       with("optimizer:\n  clip_norm: 1e999\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:14: optimizer.clip_norm is 1e999 (a number is zero or has a magnitude "
       "of 2.3e-308 to 1.8e308); write one in that range"},
      {"no digit before the point",
       with("optimizer:\n  beta1: .9\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: optimizer.beta1 is .9 (a digit stands before the point); write 0.9"},
      {"no digit after the point",
       with("optimizer:\n  beta1: 0.\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: optimizer.beta1 is 0. (a digit stands after the point); write 0.0"},
      {"grouped digits of a number",
       with("optimizer:\n  eps: 1_0e-8\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:8: optimizer.eps is 1_0e-8 (digits are not grouped); write 10e-8"},
      {"word for a number",
       with("optimizer:\n  beta1: high\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: optimizer.beta1 is high (its value is a number); write one"},
      {"quoted number",
       with("optimizer:\n  beta1: '0.9'\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: optimizer.beta1 is \"0.9\" (its value is a number, and what is in "
       "quotes is a string); remove the quotes"},
      {"zero learning rate",
       with("optimizer:\n  learning_rate: 0\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:18: optimizer.learning_rate is 0 (it is above 0 and at most 100); use "
       "a value above 0"},
      {"beta of one",
       with("optimizer:\n  beta2: 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: optimizer.beta2 is 1 (it is at least 0 and below 1); use a value "
       "below 1"},
      {"negative beta",
       with("optimizer:\n  beta1: -0.1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: optimizer.beta1 is -0.1 (it is at least 0 and below 1); use a "
       "value of at least 0"},
      {"held_out of one",
       with("data:\n  held_out: 1.0\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:13: data.held_out is 1.0 (it is at least 0 and below 1); use a value "
       "below 1"},
      {"zero multiplier",
       with_model("  embedding_multiplier: 0\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:25: model.embedding_multiplier is 0 (it is above 0 and at most 1e+06); "
       "use a value above 0"},
      {"multiplier that is 0 in f32",
       kTiny,
       {"model.attention_multiplier=1e-50"},
       ExitCode::config,
       "argument 'model.attention_multiplier=1e-50': model.attention_multiplier is 1e-50 (it is 0 "
       "in "
       "f32, whose least number is 1.1754943508222875e-38); use at least that"},
      {"cap that is 0 in f32",
       kTiny,
       {"model.final_cap=1e-44"},
       ExitCode::config,
       "argument 'model.final_cap=1e-44': model.final_cap is 1e-44 (it is 0 in f32, whose least "
       "number is 1.1754943508222875e-38); use at least that, or 0"},
      {"yes",
       with_model("  tie_embeddings: yes\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:19: model.tie_embeddings is yes (its value is true or false); write one "
       "of these, without quotes"},
      {"quoted bool",
       with_model("  tie_embeddings: \"true\"\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:19: model.tie_embeddings is \"true\" (its value is true or false); write "
       "one of these, without quotes"},
      {"one for a bool",
       with_model("  tie_embeddings: 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:19: model.tie_embeddings is 1 (its value is true or false); write one "
       "of these, without quotes"},
      {"unknown word",
       with("run:\n  device: tpu0\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:11: run.device is tpu0 (it is one of auto, cpu and cuda); did you mean "
       "cpu?"},
      {"misspelt word",
       with("run:\n  resume: requierd\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:11: run.resume is requierd (it is one of auto, required and never); "
       "did you mean required?"},
      {"word of a list",
       with("memory:\n  recompute: [norm, gegul]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:21: memory.recompute is gegul (it is one of norm, attention, experts, geglu, "
       "block, none and auto); did you mean geglu?"},
      {"no words",
       with("memory:\n  recompute: []\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:14: memory.recompute is a list (the list is empty); write norm, "
       "attention, experts, geglu, block, none or auto"},
      {"a word that stands alone",
       with("memory:\n  recompute: [norm, none]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:14: memory.recompute is a list (with other words, and none stands alone); "
       "write none, or the others without it"},
      {"an integer for a list",
       with("parallel:\n  stages: 2\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:11: parallel.stages is 2 (its value is a list of integers); write [1, 2], or "
       "[] for none"},
      {"nothing for a list of integers",
       kTiny,
       {"parallel.stages="},
       ExitCode::config,
       "argument 'parallel.stages=': parallel.stages is empty (its value is a list of integers); "
       "write [1, 2], or [] for none"},
      {"a fraction in a list",
       with("parallel:\n  stages: [1, 1.5]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:15: parallel.stages[1] is 1.5 (its value is an integer); write a whole "
       "number"},
      {"a word in a list of integers",
       kTiny,
       {"parallel.stages=[two]"},
       ExitCode::config,
       "argument 'parallel.stages=[two]': parallel.stages[0] is two (its value is an integer); "
       "write one"},
      {"a list in a list",
       with("parallel:\n  stages: [[2]]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:12: parallel.stages[0] is a list (its value is an integer); write one"},
      {"a negative integer in a list",
       with("parallel:\n  stages: [3, -1]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:15: parallel.stages[1] is -1 (it is between 0 and 4096); use at least 0"},
      {"a large integer in a list",
       kTiny,
       {"parallel.stages=[4097]"},
       ExitCode::config,
       "argument 'parallel.stages=[4097]': parallel.stages[0] is 4097 (it is between 0 and 4096); "
       "use at most 4096"},
      {"a schedule that there is none of",
       kTiny,
       {"parallel.schedule=zb-h2"},
       ExitCode::config,
       "argument 'parallel.schedule=zb-h2': parallel.schedule is zb-h2 (it is one of 1f1b, "
       "interleaved, zb-h1 and zbv); did you mean zb-h1?"},
      {"misspelt preset",
       with_model("  preset: grok1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:11: model.preset is grok1 (it is one of grok-1 and grok-2); did you "
       "mean grok-1?"},
      {"unknown preset",
       with_model("  preset: mixtral-8x7b\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:11: model.preset is mixtral-8x7b (it is one of grok-1 and grok-2); "
       "write grok-1 or grok-2"},
      {"a path among maps",
       with("data:\n  train: [{path: a, weight: 1}, b.txt]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:33: data.train[1] is b.txt (the entries are paths, which are one text, or "
       "maps, which are a text each); write all of them as {path: a.txt}, or none"},
      {"a weight of nothing",
       with("data:\n  train: [{path: a, weight: 0}]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:29: data.train[0].weight is 0 (a weight is above 0 and at most 1e6); use 1, "
       "say"},
      {"an entry's unknown key",
       with("data:\n  train: [{path: a, wieght: 1}]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:21: unknown key data.train[0].wieght (an entry has no such key); did you mean "
       "weight?"},
      {"list for a string",
       with("run:\n  dir: [a]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:8: run.dir is a list (its value is a string); write one, in quotes if "
       "it has signs of YAML"},
      {"nothing for a string",
       with("run:\n  dir: ~\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:3: run.dir is empty (its value is a string); write one, in quotes if "
       "it has signs of YAML"},
      {"NUL in a string",
       with("run:\n  dir: \"a\\0b\"\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:8: run.dir is \"a\\u0000b\" (it holds a NUL, at which the system ends a "
       "string); remove it"},
      {"string for a list",
       with("data:\n  train: a.txt\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: data.train is a.txt (its value is a list); write [a, b]"},
      {"map for a list",
       with("data:\n  train: {a: b}\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: data.train is a map (its value is a list); write [a, b]"},
      {"list in a list",
       with("data:\n  train: [a.txt, [b.txt]]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:18: data.train[1] is a list (its value is a string); write one, in "
       "quotes if it has signs of YAML"},
      {"long value",
       kTiny,
       {"run.seed=" + std::string(80, 'x')},
       ExitCode::config,
       "argument "
       "'run.seed=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
       ": "
       "run.seed is xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx... (its "
       "value is an integer); write one"},

  };
}

class BadValueTest : public testing::TestWithParam<test::BadConfig> {};

TEST_P(BadValueTest, IsRefused) {
  test::expect_refused(GetParam());
}

INSTANTIATE_TEST_SUITE_P(All, BadValueTest, testing::ValuesIn(bad_configs()), test::case_name);

double number(const std::string& text) {
  return parse_number(parse_yaml(text, "text"), "key");
}

TEST(Number, IsReadAsWritten) {
  EXPECT_EQ(number("0"), 0.0);
  EXPECT_EQ(number("30"), 30.0);
  EXPECT_EQ(number("-1.5"), -1.5);
  EXPECT_EQ(number("1e-8"), 1e-8);
  EXPECT_EQ(number("2.5E+3"), 2500.0);
}

TEST(Number, PrintsAsTextThatReadsTheSameBits) {
  using Limits = std::numeric_limits<double>;
  for (const double value : {0.1,
                             1.0 / 3,
                             1e-8,
                             1e6,
                             123456789.0,
                             std::nextafter(0.9, 1.0),
                             Limits::max(),
                             Limits::min(),
                             Limits::epsilon()}) {
    EXPECT_EQ(number(print_number(value)), value);
  }
}

}  // namespace
}  // namespace memphis
