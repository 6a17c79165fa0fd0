// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/load.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "csrc/config/yaml_tree.h"
#include "csrc/core/error.h"
#include "tests/config/bad_config.h"
#include "tests/support/environment_variable.h"
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
      {"misspelt section",
       with("modle:\n  d_model: 64\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:1: unknown section modle (a config has no such section); did you mean "
       "model?"},
      {"unknown section",
       with("wandb:\n  project: x\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:1: unknown section wandb (a config has no such section); the sections "
       "are model, run, parallel, memory, data, batch, optimizer, schedule, loss, precision, "
       "checkpoint and metrics"},
      {"misspelt key",
       with_model("  num_kv_head: 2\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:3: unknown key model.num_kv_head (model has no such key); did you mean "
       "model.num_kv_heads?"},
      {"letters that changed places",
       with("optimizer:\n  btea1: 0.9\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:3: unknown key optimizer.btea1 (optimizer has no such key); did you "
       "mean optimizer.beta1?"},
      {"key of another section",
       with_model("  learning_rate: 0.1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:3: unknown key model.learning_rate (model has no such key); did you "
       "mean optimizer.learning_rate?"},
      {"unknown key",
       with("checkpoint:\n  compression: zstd\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:3: unknown key checkpoint.compression (checkpoint has no such key); "
       "the keys of checkpoint are every, keep, background, max_failures and keep_every"},
      {"key inside a list",
       with("data:\n  train: [{path: a.txt}]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:11: data.train[0] is a map (it says no weight, which is its share of a "
       "mixture's samples over the sum of all); write {path: a.txt, weight: 1}"},
      {"empty key",
       with("\"\": 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:1: a key is \"\" (a key is one word); write it as `key: value`"},
      {"quoted empty key",
       with("run:\n  \"\": 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:3: a key is \"\" (a key is one word); write it as `key: value`"},
      {"repeated section",
       with("model:\n  d_model: 64\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:1: model is given twice (first on line 1); keep one of the two"},
      {"repeated key",
       with_model("  d_model: 128\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:3: model.d_model is given twice (first on line 4); keep one of the two"},
      {"repeated with other quotes",
       with_model("  \"d_model\": 64\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:3: model.d_model is given twice (first on line 4); keep one of the two"},
      {"empty file",
       "",
       {},
       ExitCode::config,
       "tiny.yaml: the config is empty (model and schedule have no default); give at least "
       "these sections"},
      {"only a comment",
       "# nothing\n",
       {},
       ExitCode::config,
       "tiny.yaml: the config is empty (model and schedule have no default); give at least "
       "these sections"},
      {"a list",
       "- model\n",
       {},
       ExitCode::config,
       "tiny.yaml:1:1: the config is a list (it is a map of sections); start with `model:`"},
      {"a word",
       "model\n",
       {},
       ExitCode::config,
       "tiny.yaml:1:1: the config is model (it is a map of sections); start with `model:`"},
      {"section without body",
       with("optimizer:\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:1: optimizer is empty (a section is a map of keys); write `key: value` "
       "lines below it"},
      {"section is a list",
       with("optimizer: [1, 2]\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:12: optimizer is a list (a section is a map of keys); write `key: "
       "value` lines below it"},
      {"section is a number",
       with("optimizer: 3\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:12: optimizer is 3 (a section is a map of keys); write `key: value` "
       "lines below it"},
      {"key is a list",
       with("[a, b]: 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:1: a key is a list (a key is one word); write it as `key: value`"},
      {"key is empty",
       with("? \n: 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:1: a key is empty (a key is one word); write it as `key: value`"},
      {"anchor",
       "model: &m\n  d_model: 64\n",
       {},
       ExitCode::config,
       "tiny.yaml:1:8: an anchor stands here (a config spells every value out); remove the "
       "'&' and its name"},
      {"alias",
       with("optimizer: *m\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:12: an alias stands here (a config spells every value out); write the "
       "value in its place"},
      {"merge key",
       "model:\n  <<: {d_model: 64}\n",
       {},
       ExitCode::config,
       "tiny.yaml:2:3: a merge key stands here (a config spells every value out); write the "
       "keys that it stands for"},
      {"second document",
       with("---\nrun:\n  seed: 2\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:1: a second document starts here (a config is one document); remove it "
       "with the '---' before it"},
      {"empty second document",
       with("---\n"),
       {},
       ExitCode::config,
       "tiny.yaml:10:1: a second document starts here (a config is one document); remove it "
       "with the '---' before it"},
      {"tag",
       with_model("  rope_theta: !!float 1e4\n"),
       {},
       ExitCode::config,
       "tiny.yaml:8:15: the tag tag:yaml.org,2002:float stands here (the type of a value "
       "follows from its key); remove the tag"},
      {"tag on a map",
       "model: !grok\n  d_model: 64\n",
       {},
       ExitCode::config,
       "tiny.yaml:1:8: the tag !grok stands here (the type of a value follows from its "
       "key); remove the tag"},
      {"broken syntax",
       with("data: {train: [a, b\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:1: not YAML (end of sequence flow not found); correct the syntax here "
       "or just before"},
      {"tab",
       "model:\n\td_model: 64\n",
       {},
       ExitCode::config,
       "tiny.yaml:2:1: a tab indents this line (YAML indents with spaces); replace it"},
      {"tab in a later line",
       with("run:\n  dir: a\n \tseed: 1\n"),
       {},
       ExitCode::config,
       "tiny.yaml:12:2: a tab indents this line (YAML indents with spaces); replace it"},
      {"not UTF-8",
       with("run:\n  dir: \"runs/\xff\"\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:14: byte 255 is not UTF-8 (a config is UTF-8 text); save the file in "
       "that encoding"},
      {"overlong UTF-8",
       with("run:\n  dir: \xc0\xaf\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:8: byte 192 is not UTF-8 (a config is UTF-8 text); save the file in "
       "that encoding"},
      {"control character",
       with("run:\n  dir: \x01\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:8: byte 1 is a control character (a config is plain text); remove it, "
       "or write it as an escape in double quotes"},
      {"nested too deep",
       with(std::string(40, '[')),
       {},
       ExitCode::config,
       "tiny.yaml:10:17: lists and maps are nested more than 32 deep (a config needs 3); "
       "check the brackets"},
      {"too large",
       std::string(1'048'577, '#'),
       {},
       ExitCode::config,
       "tiny.yaml: the text has 1048577 bytes (a config has at most 1048576); check that "
       "this is the right file"},
      {"argument without =",
       kTiny,
       {"run.seed"},
       ExitCode::config,
       "argument 'run.seed': no '=' (an override is section.key=value); put it between key "
       "and value"},
      {"argument without a path",
       kTiny,
       {"=3"},
       ExitCode::config,
       "argument '=3': '' names no key (an override is section.key=value); write both "
       "words, as in run.seed=2"},
      {"argument without a section",
       kTiny,
       {"seed=3"},
       ExitCode::config,
       "argument 'seed=3': 'seed' names no key (an override is section.key=value); write "
       "both words, as in run.seed=2"},
      {"argument without a key",
       kTiny,
       {"run.=3"},
       ExitCode::config,
       "argument 'run.=3': 'run.' names no key (an override is section.key=value); write "
       "both words, as in run.seed=2"},
      {"argument of an unknown section",
       kTiny,
       {"rum.seed=3"},
       ExitCode::config,
       "argument 'rum.seed=3': unknown section rum (a config has no such section); did you "
       "mean run?"},
      {"argument of an unknown key",
       kTiny,
       {"run.sede=3"},
       ExitCode::config,
       "argument 'run.sede=3': unknown key run.sede (run has no such key); did you mean "
       "run.seed?"},
      {"argument with a path too long",
       kTiny,
       {"run.seed.low=3"},
       ExitCode::config,
       "argument 'run.seed.low=3': unknown key run.seed.low (run has no such key); the keys "
       "of run are dir, device, seed, resume, init_from, export_every, lost_seconds, "
       "hang_seconds, graph, time_limit, failure_hours, verify_every and recompute_check_every"},
      {"argument of the wrong type",
       kTiny,
       {"run.seed=one"},
       ExitCode::config,
       "argument 'run.seed=one': run.seed is one (its value is an integer); write one"},
      {"argument without a value",
       kTiny,
       {"run.seed="},
       ExitCode::config,
       "argument 'run.seed=': run.seed is empty (its value is an integer); write one"},
      {"argument with broken syntax",
       kTiny,
       {"data.train=[a, b"},
       ExitCode::config,
       "argument 'data.train=[a, b': not YAML (end of sequence flow not found); correct the "
       "syntax here or just before"},
      {"argument given twice",
       kTiny,
       {"run.seed=1", "run.seed=2"},
       ExitCode::config,
       "argument 'run.seed=2': run.seed is given twice (first by argument 'run.seed=1'); "
       "keep one of the two"},
      {"argument with an anchor",
       kTiny,
       {"run.dir=&a b"},
       ExitCode::config,
       "argument 'run.dir=&a b': an anchor stands here (a config spells every value out); "
       "remove the '&' and its name"},
      {"argument with hexadecimal",
       kTiny,
       {"run.seed=0xff"},
       ExitCode::config,
       "argument 'run.seed=0xff': run.seed is 0xff (an integer is written in decimal); "
       "write 255"},
      {"file value is bad and overridden",
       with("run:\n  seed: 0x1\n"),
       {"run.seed=1"},
       ExitCode::config,
       "tiny.yaml:11:9: run.seed is 0x1 (an integer is written in decimal); write 1"},
      {"argument with a comment",
       kTiny,
       {"metrics.sample_prompt=Item # 1"},
       ExitCode::config,
       "argument 'metrics.sample_prompt=Item # 1': '# 1' would be a comment (YAML takes a # at "
       "the beginning or behind a space for one); put the value in double quotes within the "
       "argument, as in 'run.dir=\"run #3\"'"},
      {"argument that is a comment",
       kTiny,
       {"run.dir=#3"},
       ExitCode::config,
       "argument 'run.dir=#3': '#3' would be a comment (YAML takes a # at the beginning or behind "
       "a space for one); put the value in double quotes within the argument, as in "
       "'run.dir=\"run #3\"'"},
      {"argument with a comment behind quotes",
       kTiny,
       {"run.dir=\"a # b\" # c"},
       ExitCode::config,
       "argument 'run.dir=\"a # b\" # c': '# c' would be a comment (YAML takes a # at the "
       "beginning or behind a space for one); put the value in double quotes within the argument, "
       "as in 'run.dir=\"run #3\"'"},
      {"argument whose space would be lost",
       kTiny,
       {"metrics.sample_prompt=Once upon "},
       ExitCode::config,
       "argument 'metrics.sample_prompt=Once upon ': metrics.sample_prompt would be \"Once upon\" "
       "(without quotes YAML drops spaces and line ends); write it within the argument as \"Once "
       "upon \", or without them"},
      {"argument whose line end would be lost",
       kTiny,
       {"metrics.sample_prompt=a\nb"},
       ExitCode::config,
       "argument 'metrics.sample_prompt=a\nb': metrics.sample_prompt would be \"a b\" (without "
       "quotes YAML drops spaces and line ends); write it within the argument as \"a\\nb\", or "
       "without them"},
      {"argument with a space before its equals sign",
       kTiny,
       {"run.seed = 3"},
       ExitCode::config,
       "argument 'run.seed = 3': a space stands around the key (an override is "
       "section.key=value); remove it"},
      {"empty list in an argument",
       kTiny,
       {"data.train=[]"},
       ExitCode::config,
       "argument 'data.train=[]': data.train is [] (of an empty variable, perhaps; it would mean "
       "memphis's own sources); name what it is for, or leave the key out for that"},
      {"empty list in the file",
       with("data:\n  train: []\n"),
       {},
       ExitCode::config,
       "tiny.yaml:11:10: data.train is [] (of an empty variable, perhaps; it would mean memphis's "
       "own sources); name what it is for, or leave the key out for that"},
      {"UTF-16",
       std::string("\xFF\xFEm\0o\0", 6),
       {},
       ExitCode::config,
       "tiny.yaml: it is UTF-16 text, by its byte order mark (a config is UTF-8 text); convert it, "
       "as in `iconv -f UTF-16 -t UTF-8`"},
      {"map for an argument",
       kTiny,
       {"metrics.sample_prompt=a: b"},
       ExitCode::config,
       "argument 'metrics.sample_prompt=a: b': metrics.sample_prompt is a map (its value is "
       "a string); write one, in quotes if it has signs of YAML"},

  };
}

class BadTextTest : public testing::TestWithParam<test::BadConfig> {};

TEST_P(BadTextTest, IsRefused) {
  test::expect_refused(GetParam());
}

INSTANTIATE_TEST_SUITE_P(All, BadTextTest, testing::ValuesIn(bad_configs()), test::case_name);

// The resolved config of a run that started elsewhere is read without asking whether it could start
// here.
TEST(CheckText, AsksNothingOfTheMachine) {
  const Config config =
      parse_config(kTiny,
                   "stored",
                   {"data.train=[no/such.txt]", "run.dir=LICENSE", "run.device=cuda"},
                   Check::text);
  EXPECT_EQ(config.data.train, std::vector<std::string>{"no/such.txt"});
}

TEST(LoadConfig, NamesTheFileThatCannotBeRead) {
  const std::string missing =
      test::error_text<ConfigError>([] { load_config("no/such.yaml", {}); });
  EXPECT_TRUE(missing.starts_with("there is no config no/such.yaml (seen from /")) << missing;
  EXPECT_EQ(test::error_text<ConfigError>([] { load_config("csrc", {}); }),
            "cannot read csrc (it is a directory); name a file that lies in it");
  const test::TemporaryDirectory directory;
  const std::string large = directory.write("large.yaml", std::string(kMaxYamlBytes + 1, '#'));
  EXPECT_EQ(test::error_text<ConfigError>([&] { load_config(large, {}); }),
            "cannot read " + large +
                " (it has more than 1048576 bytes); check that this is the right file");
}

TEST(LoadConfig, ReadsAPipe) {
  const test::TemporaryDirectory directory;
  const std::filesystem::path pipe = directory.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] { std::ofstream(pipe) << kTiny; });
  EXPECT_EQ(load_config(pipe, {"run.device=cpu"}).model.d_model, 64);
  writer.join();
}

// As editors of other systems write it.
TEST(LoadConfig, ReadsCarriageReturnsAndAByteOrderMark) {
  std::string text;
  for (const char c : kTiny) {
    text += c == '\n' ? "\r\n" : std::string(1, c);
  }
  const Config expected = parse_config(kTiny, "tiny.yaml", {}, Check::text);
  EXPECT_EQ(parse_config(text, "tiny.yaml", {}, Check::text), expected);
  EXPECT_EQ(parse_config("\xEF\xBB\xBF" + kTiny, "tiny.yaml", {}, Check::text), expected);
}

TEST(LoadConfig, AnArgumentKeepsWhatYamlLeavesAlone) {
  const auto read = [](const std::string& argument) {
    return parse_config(kTiny, "tiny.yaml", {argument}, Check::elsewhere);
  };
  EXPECT_EQ(read("run.dir=run#3").run.dir, "run#3");
  EXPECT_EQ(read("run.dir='run #3'").run.dir, "run #3");
  EXPECT_EQ(read("data.train=[a#b.txt, \"c #d.txt\"]").data.train,
            (std::vector<std::string>{"a#b.txt", "c #d.txt"}));
  EXPECT_EQ(read("data.train=[ a b.txt , c.txt ]").data.train,
            (std::vector<std::string>{"a b.txt", "c.txt"}));
  EXPECT_EQ(read("metrics.sample_prompt=it's = fine").metrics.sample_prompt, "it's = fine");
  EXPECT_EQ(read("metrics.sample_prompt=\" # \\n\"").metrics.sample_prompt, " # \n");
}

// A tag, a directive and a quote without its end leave nothing of a value.
TEST(LoadConfig, AnArgumentThatYamlMakesNothingOfIsNamed) {
  const auto refusal = [](const std::string& argument) {
    return test::error_text<ConfigError>(
        [&] { parse_config(kTiny, "tiny.yaml", {argument}, Check::elsewhere); });
  };
  for (const std::string value : {"!x", "%x"}) {
    const std::string text = refusal("run.dir=" + value);
    EXPECT_NE(text.find("YAML makes nothing of " + value), std::string::npos) << text;
    EXPECT_NE(text.find("within the argument as \"" + value + "\""), std::string::npos) << text;
  }
  for (const char* quote : {"\"", "'"}) {
    const std::string text = refusal(std::string("run.dir=") + quote);
    EXPECT_EQ(text.find("is empty"), std::string::npos) << text;
  }
  for (const char* nothing : {"run.dir=", "run.dir= ~", "run.dir=null"}) {
    EXPECT_NE(refusal(nothing).find("run.dir is empty"), std::string::npos) << refusal(nothing);
  }
}

// A checkpoint's manifest and the lines of metrics are JSON, which has no other text.
TEST(LoadConfig, TextThatIsNotUtf8IsRefused) {
  const auto refusal = [](const std::string& argument) {
    return test::error_text<ConfigError>(
        [&] { parse_config(kTiny, "tiny.yaml", {argument}, Check::elsewhere); });
  };
  const test::EnvironmentVariable latin("MEMPHIS_LATIN", "caf\xE9");
  for (const char* argument : {"data.train=[$MEMPHIS_LATIN/a.txt]",
                               "run.dir=$MEMPHIS_LATIN",
                               "data.train=[{path: $MEMPHIS_LATIN, weight: 1, name: a}]",
                               "metrics.sample_prompt=\"a\\_b\"",
                               "metrics.sample_prompt=\"a\\Nb\""}) {
    const std::string text = refusal(argument);
    EXPECT_NE(text.find("(it is not UTF-8"), std::string::npos) << text;
    EXPECT_TRUE(test::follows_grammar(text)) << text;
  }
  const Config config = parse_config(kTiny,
                                     "tiny.yaml",
                                     {"metrics.sample_prompt=\"caf\xC3\xA9 \xF0\x9F\x98\x80\""},
                                     Check::elsewhere);
  EXPECT_EQ(config.metrics.sample_prompt, "caf\xC3\xA9 \xF0\x9F\x98\x80");
}

// Of earlier versions, which printed the list that they were not given.
TEST(CheckText, AListThatIsEmptyIsLeftOut) {
  const Config config = parse_config(test::with("data:\n  train: []\n"), "old", {}, Check::text);
  EXPECT_TRUE(config.data.train.empty());
  EXPECT_EQ(to_yaml(config).find("train:"), std::string::npos);
}

TEST(LoadConfig, ReadsTheFileAndWritesNothing) {
  const test::TemporaryDirectory directory;
  const std::string text = directory.write("text/a.txt", "some text");
  const std::string file = directory.write("tiny.yaml", kTiny);
  const std::string run = (directory.path() / "runs" / "tiny").string();
  const Config config =
      load_config(file, {"data.train=[" + text + "]", "run.dir=" + run, "run.device=cpu"});
  EXPECT_EQ(config.model.d_model, 64);
  EXPECT_EQ(config.data.train, std::vector<std::string>{text});
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "runs"));
  EXPECT_EQ(test::error_text<ConfigError>([&] { load_config(file, {"model.num_experts=1"}); }),
            "argument 'model.num_experts=1': model.experts_per_token 2 exceeds model.num_experts 1 "
            "(a token visits an expert at most once); use at most 1");
}

}  // namespace
}  // namespace memphis
