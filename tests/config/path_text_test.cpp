// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/path_text.h"

#include <string>

#include <gtest/gtest.h>
#include <pwd.h>
#include <unistd.h>

#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "tests/config/bad_config.h"
#include "tests/support/environment_variable.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

class PathTextTest : public testing::Test {
 protected:
  static YamlNode node(const std::string& text) {
    YamlNode result;
    result.kind = YamlNode::Kind::scalar;
    result.place = "tiny.yaml:1:1";
    result.text = text;
    return result;
  }
  static std::string expand(const std::string& text) { return expand_path(node(text), "run.dir"); }

  test::EnvironmentVariable home{"HOME", "/home/of"};
  test::EnvironmentVariable set{"MEMPHIS_TEST_DIR", "/scratch/a b"};
  test::EnvironmentVariable money{"MEMPHIS_TEST_MONEY", "/a$b"};
  test::EnvironmentVariable empty{"MEMPHIS_TEST_EMPTY", ""};
  test::EnvironmentVariable unset{"MEMPHIS_TEST_UNSET", nullptr};
};

TEST_F(PathTextTest, ALeadingTildeIsAHomeFolder) {
  EXPECT_EQ(expand("~/runs/x"), "/home/of/runs/x");
  EXPECT_EQ(expand("~"), "/home/of");
  const passwd* user = ::getpwuid(::getuid());
  if (user != nullptr) {
    EXPECT_EQ(expand("~" + std::string(user->pw_name) + "/x"), std::string(user->pw_dir) + "/x");
    const test::EnvironmentVariable no_home("HOME", nullptr);
    EXPECT_EQ(expand("~/x"), std::string(user->pw_dir) + "/x");
  }
  EXPECT_EQ(expand("a/~/b"), "a/~/b");
  EXPECT_EQ(expand("./~"), "./~");
  EXPECT_EQ(expand("text~"), "text~");
}

TEST_F(PathTextTest, VariablesAreTheirValues) {
  EXPECT_EQ(expand("$MEMPHIS_TEST_DIR/runs"), "/scratch/a b/runs");
  EXPECT_EQ(expand("${MEMPHIS_TEST_DIR}1"), "/scratch/a b1");
  EXPECT_EQ(expand("x${MEMPHIS_TEST_DIR}$MEMPHIS_TEST_DIR"), "x/scratch/a b/scratch/a b");
  EXPECT_EQ(expand("$MEMPHIS_TEST_MONEY"), "/a$b") << "a value is not read again";
  EXPECT_EQ(expand("a$$b"), "a$b");
  EXPECT_EQ(expand("5$ a $1 $"), "5$ a $1 $");
  EXPECT_EQ(expand("runs/plain"), "runs/plain");
  EXPECT_EQ(expand(""), "");
}

TEST_F(PathTextTest, WhatHasNoValueIsRefused) {
  for (const auto& [text, reason] :
       {std::pair{"$MEMPHIS_TEST_UNSET/x", "MEMPHIS_TEST_UNSET is not set"},
        {"${MEMPHIS_TEST_EMPTY}/x", "MEMPHIS_TEST_EMPTY is empty"},
        {"${MEMPHIS_TEST_DIR:-x}", "between ${ and }"},
        {"${}", "between ${ and }"},
        {"${MEMPHIS_TEST_DIR", "between ${ and }"},
        {"$(pwd)/x", "a config does not"},
        {"~no_such_user_here/x", "there is no user no_such_user_here"}}) {
    const std::string error = test::error_text<ConfigError>([&, t = text] { expand(t); });
    EXPECT_TRUE(test::follows_grammar(error));
    EXPECT_EQ(error.rfind("tiny.yaml:1:1: run.dir is ", 0), 0U) << error;
    EXPECT_NE(error.find(reason), std::string::npos) << error;
  }
}

// The keys that are paths, in a file and in arguments, and no other.
TEST_F(PathTextTest, AConfigsPathsAreExpanded) {
  const Config config =
      parse_config(test::with("run: {dir: ~/runs/x}\n"
                              "data:\n"
                              "  train: [\"$MEMPHIS_TEST_DIR/a.txt\", ~/b.txt]\n"),
                   "tiny.yaml",
                   {"data.validation=[\"${MEMPHIS_TEST_DIR}/c.txt\"]",
                    "metrics.sample_prompt=~ costs $MEMPHIS_TEST_UNSET"},
                   Check::elsewhere);
  EXPECT_EQ(config.run.dir, "/home/of/runs/x");
  EXPECT_EQ(config.data.train, (std::vector<std::string>{"/scratch/a b/a.txt", "/home/of/b.txt"}));
  EXPECT_EQ(config.data.validation, std::vector<std::string>{"/scratch/a b/c.txt"});
  EXPECT_EQ(config.metrics.sample_prompt, "~ costs $MEMPHIS_TEST_UNSET");
}

TEST_F(PathTextTest, APrintedConfigIsReadAsTheSameAnywhere) {
  const Config config = parse_config(
      test::kTiny, "tiny.yaml", {"run.dir=$MEMPHIS_TEST_MONEY/$$HOME"}, Check::elsewhere);
  EXPECT_EQ(config.run.dir, "/a$b/$HOME");
  EXPECT_EQ(parse_config(to_yaml(config), "printed", {}, Check::elsewhere), config);
  EXPECT_EQ(parse_config(to_yaml(config), "printed", {}, Check::text), config);
  EXPECT_EQ(
      parse_config(test::with("run: {dir: $MEMPHIS_TEST_UNSET}\n"), "old", {}, Check::text).run.dir,
      "$MEMPHIS_TEST_UNSET")
      << "of a run that is over, nothing is asked";
}

}  // namespace
}  // namespace memphis
