// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/path_pattern.h"

#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

class PathPatternTest : public testing::Test {
 protected:
  PathPatternTest() {
    for (const char* name : {"one.txt",
                             "two.md",
                             "a/one.txt",
                             "a/b/one.txt",
                             "a/b/c/two.txt",
                             "a/.hidden/one.txt",
                             ".dot.txt",
                             "x[1].txt"}) {
      directory.write(name, "x");
    }
  }

  // Sorted, each once, from the directory on.
  Names match(const std::string& pattern) const {
    std::set<std::string> names;
    visit_matches((directory.path() / pattern).string(), [&](const fs::path& path) {
      names.insert(path.lexically_relative(directory.path()).string());
      return true;
    });
    return {names.begin(), names.end()};
  }

  test::TemporaryDirectory directory;
};

TEST_F(PathPatternTest, SignsStandWithinOneName) {
  EXPECT_EQ(match("*.txt"), (Names{"one.txt", "x[1].txt"}));
  EXPECT_EQ(match("?ne.txt"), (Names{"one.txt"}));
  EXPECT_EQ(match("[ot]*"), (Names{"one.txt", "two.md"}));
  EXPECT_EQ(match("*"), (Names{"a", "one.txt", "two.md", "x[1].txt"}));
  EXPECT_EQ(match("*/"), (Names{"a"}));
  EXPECT_EQ(match("*/one.txt"), (Names{"a/one.txt"}));
  EXPECT_EQ(match("a/*/*/two.txt"), (Names{"a/b/c/two.txt"}));
  EXPECT_EQ(match(".*.txt"), (Names{".dot.txt"}));
  EXPECT_EQ(match("x\\[1].txt"), (Names{"x[1].txt"}));
  EXPECT_EQ(match("one.txt/*"), Names{});
  EXPECT_EQ(match("none/*"), Names{});
}

TEST_F(PathPatternTest, TwoStarsAreAnyNumberOfDirectories) {
  EXPECT_EQ(match("**/one.txt"), (Names{"a/b/one.txt", "a/one.txt", "one.txt"}));
  EXPECT_EQ(match("a/**/*.txt"), (Names{"a/b/c/two.txt", "a/b/one.txt", "a/one.txt"}));
  EXPECT_EQ(match("**/b/**/*.txt"), (Names{"a/b/c/two.txt", "a/b/one.txt"}));
  EXPECT_EQ(match("**/**/two.txt"), (Names{"a/b/c/two.txt"}));
  EXPECT_EQ(match("a/**"), (Names{"a/b/c/two.txt", "a/b/one.txt", "a/one.txt"}));
  EXPECT_EQ(match("a/.hidden/**"), (Names{"a/.hidden/one.txt"}));
}

TEST_F(PathPatternTest, LinksAreFollowedAndACycleEnds) {
  fs::create_directory_symlink(directory.path() / "a", directory.path() / "a/b/up");
  fs::create_directory_symlink(directory.path() / "a/b", directory.path() / "link");
  fs::create_symlink("self", directory.path() / "self");
  EXPECT_EQ(match("link/*.txt"), (Names{"link/one.txt"}));
  const Names found = match("**/two.txt");
  EXPECT_EQ(found, (Names{"a/b/c/two.txt"})) << "entered once, by the first of its names";
}

TEST_F(PathPatternTest, VisitingEndsWhereItIsToldTo) {
  int visits = 0;
  EXPECT_FALSE(visit_matches((directory.path() / "**").string(),
                             [&](const fs::path&) { return ++visits < 2; }));
  EXPECT_EQ(visits, 2);
  EXPECT_TRUE(visit_matches((directory.path() / "none*").string(),
                            [&](const fs::path&) { return ++visits < 2; }));
}

TEST_F(PathPatternTest, TwoStarsWithinANameAreRefusedWithWhatIsMeant) {
  const std::string text = test::error_text<DataError>([&] { match("a/**.txt"); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find("write **/*.txt"), std::string::npos) << text;
}

TEST_F(PathPatternTest, ADirectoryThatCannotBeListedIsAnError) {
  if (::geteuid() == 0) {
    GTEST_SKIP() << "root lists every directory";
  }
  fs::permissions(directory.path() / "a/b", fs::perms::none);
  const std::string text = test::error_text<DataError>([&] { match("**/*.txt"); });
  fs::permissions(directory.path() / "a/b", fs::perms::owner_all);
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find("a/b"), std::string::npos) << text;
}

TEST(PathPattern, ARelativePatternIsSeenFromHere) {
  const fs::path before = fs::current_path();
  const test::TemporaryDirectory directory;
  directory.write("d/one.txt", "x");
  fs::current_path(directory.path());
  Names names;
  visit_matches("**/*.txt", [&](const fs::path& path) {
    names.push_back(path.string());
    return true;
  });
  fs::current_path(before);
  EXPECT_EQ(names, (Names{"d/one.txt"}));
}

}  // namespace
}  // namespace memphis
