// SPDX-License-Identifier: Apache-2.0
//
// What the program says of arguments that are not what it takes.
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/process.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

Ended run(const TemporaryDirectory& directory, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), MEMPHIS_BINARY);
  return run_to_end(arguments, directory.path());
}

struct Mistake {
  std::string name;
  std::vector<std::string> arguments;  // CONFIG: a config that is there, FOLDER: where
  std::string says;
};

class Hints : public testing::TestWithParam<Mistake> {};

TEST_P(Hints, NameWhatWasProbablyMeant) {
  const TemporaryDirectory directory;
  const std::string config = directory.write("tiny.yaml", tiny_yaml(directory));
  const auto in_place = [&](std::string text) {
    for (const auto& [word, value] : {std::pair<std::string, std::string>{"CONFIG", config},
                                      {"FOLDER", directory.path().string()}}) {
      if (const std::size_t at = text.find(word); at != std::string::npos) {
        text.replace(at, word.size(), value);
      }
    }
    return text;
  };
  std::vector<std::string> arguments;
  for (const std::string& argument : GetParam().arguments) {
    arguments.push_back(in_place(argument));
  }
  const Ended ended = run(directory, arguments);
  EXPECT_EQ(ended.code, 2) << ended.error;
  EXPECT_NE(ended.error.find(in_place(GetParam().says)), std::string::npos) << ended.error;
  EXPECT_EQ(ended.out, "");
}

INSTANTIATE_TEST_SUITE_P(
    Mistakes,
    Hints,
    testing::ValuesIn(std::vector<Mistake>{
        {"command", {"trian", "CONFIG"}, "did you mean train?"},
        {"no_command", {}, "memphis is given no command"},
        {"unknown_command", {"qqqqqqqq"}, "it has train, plan, "},
        {"config_for_a_command", {"CONFIG"}, "use `memphis train CONFIG`"},
        {"command_of_bench", {"bench", "setp", "CONFIG"}, "did you mean step?"},
        {"no_command_of_bench",
         {"bench"},
         "memphis bench is given no command (it has step, kernels and"},
        {"help_of_a_command", {"help", "trian"}, "did you mean train?"},
        {"option", {"generate", "run", "--promt", "x"}, "did you mean --prompt?"},
        {"option_with_value", {"generate", "run", "--promt=x"}, "did you mean --prompt?"},
        {"option_of_plan", {"plan", "CONFIG", "--rank", "2"}, "did you mean --ranks?"},
        {"unknown_option", {"plan", "CONFIG", "--qqqqqqqqq"}, "`memphis plan --help`"},
        {"key_as_option", {"train", "CONFIG", "--lr=1e-3"}, "optimizer.learning_rate=1e-3"},
        {"key_with_section", {"train", "CONFIG", "--schedule.steps", "9"}, "schedule.steps=VALUE"},
        {"key_with_dashes", {"plan", "CONFIG", "--num-layers=3"}, "model.num_layers=3"},
        {"no_config", {"train"}, "memphis train is given no config"},
        {"no_such_config", {"train", "FOLDER/tniy.yaml"}, "did you mean CONFIG?"},
        {"no_such_config_of_plan", {"plan", "FOLDER/tniy.yaml"}, "did you mean CONFIG?"},
        {"device", {"plan", "CONFIG", "run.device=gpu"}, "did you mean cuda?"},
        {"device_of_generate",
         {"generate", "run", "--prompt", "x", "--device", "gpu"},
         "did you mean cuda?"},
        {"device_of_bench", {"bench", "kernels", "--device", "gpu"}, "did you mean cuda?"},
        {"op_of_bench",
         {"bench", "kernels", "--device", "cpu", "--filter", "qqq"},
         "the ops are adamw"},
        {"dtype",
         {"generate", "run", "--prompt", "x", "--compute", "float32"},
         "did you mean f32?"},
        {"extra", {"docs", "config", "model", "run"}, "is one argument more"},
        {"key_of_docs", {"docs", "config", "batch.micro_bacth"}, "did you mean batch.micro_batch?"},
    }),
    [](const auto& instance) { return instance.param.name; });

TEST(Help, ShowsDefaultsAndIsThereForEachCommand) {
  const TemporaryDirectory directory;
  const Ended generate = run(directory, {"generate", "--help"});
  EXPECT_EQ(generate.code, 0) << generate.error;
  for (const char* shown : {"--temperature FLOAT=0.8", "--device TEXT=cpu", "--compute TEXT=f32"}) {
    EXPECT_NE(generate.out.find(shown), std::string::npos) << shown << "\n" << generate.out;
  }
  EXPECT_NE(run(directory, {"plan", "--help"}).out.find("--ranks INT=1"), std::string::npos);
  const Ended whole = run(directory, {"--help"});
  EXPECT_EQ(run(directory, {"help"}).out, whole.out);
  EXPECT_EQ(run(directory, {"help", "bench", "step"}).out,
            run(directory, {"bench", "step", "--help"}).out);
  EXPECT_NE(whole.out.find("memphis docs config"), std::string::npos) << whole.out;
}

}  // namespace
}  // namespace memphis::test
