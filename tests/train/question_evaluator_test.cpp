// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/question_evaluator.h"

#include <cmath>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "tests/support/error_text.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

// Eleven questions of unequal lengths, whose windows are no whole number of passes.
std::string questions_text() {
  std::string text;
  for (int i = 0; i < 11; ++i) {
    nlohmann::ordered_json line;
    line["ctx"] = "grok routes " + std::string(static_cast<std::size_t>(i), 't');
    line["endings"] = {"every token", "to two experts", std::string(1, static_cast<char>('a' + i))};
    line["label"] = i % 3;
    text += line.dump() + "\n";
  }
  return text;
}

TEST(QuestionEvaluator, EveryLayoutFindsTheSameLosses) {
  const TemporaryDirectory directory;
  const std::string file = directory.write("q.jsonl", questions_text());
  std::vector<double> expected;
  for (const Layout& layout : {layout_named("one"),
                               layout_named("one_small_batches"),
                               layout_named("data2_shared_weights"),
                               layout_named("data2_tensor2_expert2_split2"),
                               layout_named("tensor4_shared_heads"),
                               piped("pipeline2", layout_named("data2_tensor2"), 2, {})}) {
    std::vector<std::string> overrides = run_overrides(layout, "f64");
    overrides.push_back("data.evaluate=[" + file + "]");
    on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
      RankRun run(world, tiny_yaml(directory), overrides);
      const std::optional<QuestionScores> scores = run.trainer().questions().run();
      run.same_on_all(scores.value().accuracy);
      run.same_on_all(scores.value().accuracy_normalised);
      const std::span<const double> losses = run.trainer().questions().window_losses();
      if (world.rank() != 0) {
        return;
      }
      ASSERT_EQ(losses.size(), 33U);
      if (expected.empty()) {
        expected.assign(losses.begin(), losses.end());
      }
      for (std::size_t i = 0; i < losses.size(); ++i) {
        EXPECT_GT(losses[i], 1);
        EXPECT_NEAR(losses[i], expected[i], 1e-9 * expected[i]) << layout.name << " window " << i;
      }
    });
  }
}

// Every rank is told, by one of them.
TEST(QuestionEvaluator, ALossThatIsNotFiniteIsNamed) {
  const TemporaryDirectory directory;
  const std::string file = directory.write("q.jsonl", questions_text());
  for (const char* name : {"one", "data2_tensor2_expert2_split2"}) {
    const Layout& layout = layout_named(name);
    std::vector<std::string> overrides = run_overrides(layout, "f64");
    overrides.push_back("data.evaluate=[" + file + "]");
    on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
      RankRun run(world, tiny_yaml(directory), overrides);
      run.trainer().parameters().weights().head_VD.as<double>()[0] = INFINITY;
      const std::string error = error_text<Error>([&] { (void)run.trainer().questions().run(); });
      EXPECT_NE(error.find(world.rank() == 0 ? file + ":1: the loss of ending " : "on rank 0"),
                std::string::npos)
          << error;
    });
  }
}

TEST(QuestionEvaluator, IsAskedWhenItIsDueAndOnceMoreWhereThatIsOwed) {
  const TemporaryDirectory directory;
  const std::string file = directory.write("q.jsonl", questions_text());
  const auto train = [&](const std::string& steps) {
    Trainer trainer(tiny_config(directory,
                                {"schedule.steps=" + steps,
                                 "schedule.warmup_steps=1",
                                 "schedule.decay=constant",
                                 "metrics.validate_every=0",
                                 "metrics.evaluate_every=2",
                                 "data.evaluate=[" + file + "]"}),
                    {});
    trainer.run();
  };
  const auto steps_of_lines = [&] {
    std::vector<std::int64_t> steps;
    std::istringstream lines(read_text(directory.path() / "run/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json object = parse_json(line).value();
      if (object.contains("accuracy_normalised")) {
        EXPECT_EQ(object["questions"], 11);
        steps.push_back(object["step"]);
      }
    }
    return steps;
  };
  train("5");
  EXPECT_EQ(steps_of_lines(), (std::vector<std::int64_t>{2, 4, 5}));
  // As if it had been stopped before the last one.
  std::string text = read_text(directory.path() / "run/metrics.jsonl");
  text.erase(text.rfind("{\"step\":5,\"time\":", text.rfind("accuracy_normalised")));
  directory.write("run/metrics.jsonl", text);
  ASSERT_EQ(steps_of_lines(), (std::vector<std::int64_t>{2, 4}));
  train("5");
  EXPECT_EQ(steps_of_lines(), (std::vector<std::int64_t>{2, 4, 5}));
}

}  // namespace
}  // namespace memphis::test
