// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/resume_rules.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/config/schema.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

Config parse(const std::vector<std::string>& overrides = {}) {
  return parse_config(
      "model: {vocab_size: 512, num_layers: 2, d_model: 64, num_heads: 4,\n"
      "        ffn_dim: 128, num_experts: 4}\n"
      "schedule: {steps: 100}\n",
      "tiny.yaml",
      overrides,
      Check::text);
}

std::vector<std::string> changed(const std::vector<std::string>& was,
                                 const std::vector<std::string>& is) {
  std::vector<std::string> texts;
  for (const ConfigChange& change : changes_on_resume(parse(was), parse(is))) {
    texts.push_back(describe(change));
  }
  return texts;
}

TEST(ResumeRules, HaveARowForEveryKeyOfTheSchema) {
  Config config;
  std::vector<std::string> keys;
  for (const Field& field : fields_of(config)) {
    keys.push_back(field.path());
  }
  std::vector<std::string> rows;
  for (const ResumeRule& rule : resume_rules()) {
    rows.emplace_back(rule.key);
    EXPECT_FALSE(rule.follows.empty()) << rule.key;
  }
  EXPECT_EQ(rows, keys);
}

// What a model computes, what is held out of its training, and what a token is.
TEST(ResumeRules, KeepWhatWeightsAndLossesMean) {
  const std::set<std::string_view> may_change = {
      "model.preset", "model.max_sequence_length", "data.train", "data.evaluate"};
  for (const ResumeRule& rule : resume_rules()) {
    if ((rule.key.starts_with("model.") || rule.key.starts_with("data.")) &&
        !may_change.contains(rule.key)) {
      EXPECT_EQ(rule.on_resume, OnResume::refused) << rule.key;
    }
  }
}

TEST(ResumeRules, FindWhatDiffers) {
  EXPECT_TRUE(changed({}, {}).empty());
  EXPECT_EQ(changed({}, {"model.rope_theta=20000", "schedule.steps=50", "metrics.every=7"}),
            (std::vector<std::string>{"model.rope_theta is 20000 and was 10000",
                                      "schedule.steps is 50 and was 100"}));
  EXPECT_TRUE(of_one_run(parse(), parse({"schedule.steps=50", "parallel.zero=2"})));
  EXPECT_FALSE(of_one_run(parse(), parse({"model.attention_cap=0"})));
  EXPECT_FALSE(of_one_run(parse(), parse({"data.held_out=0.2"})));
}

TEST(ResumeRules, PassOverWhatNeitherUses) {
  EXPECT_TRUE(changed({"model.init_std=0.1"}, {}).empty());
  EXPECT_EQ(changed({"model.init=normal"}, {"model.init=normal", "model.init_std=0.1"}).size(), 1U);
  const std::string validation = "data.validation=[a.txt]";
  EXPECT_TRUE(changed({validation}, {validation, "data.held_out=0.2"}).empty());
  // The derived length of the decay follows the steps.
  EXPECT_EQ(changed({"schedule.decay=wsd"}, {"schedule.decay=wsd", "schedule.steps=50"}).size(),
            2U);
}

TEST(ResumeRules, AreTheTableOfTheReadme) {
  const std::string readme = read_text("README.md");  // tests run at the root of the repository
  EXPECT_NE(readme.find(resume_table()), std::string::npos) << "README.md should hold this table:\n"
                                                            << resume_table();
}

TEST(ResumeRules, AreShownWithEveryKey) {
  const std::string text = resume_text();
  for (const ResumeRule& rule : resume_rules()) {
    EXPECT_NE(text.find("  " + std::string(rule.key)), std::string::npos) << rule.key;
  }
}

}  // namespace
}  // namespace memphis
