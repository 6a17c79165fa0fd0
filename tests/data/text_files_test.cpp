// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_files.h"

#include <algorithm>
#include <filesystem>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

class TextFilesTest : public testing::Test {
 protected:
  std::string at(const std::string& name) const { return (directory.path() / name).string(); }

  std::vector<std::string> list(const std::vector<std::string>& entries) const {
    std::vector<std::string> names;
    for (const TextFile& file : list_text_files("data.train", entries).files) {
      names.push_back(std::filesystem::relative(file.path, directory.path()).string());
    }
    return names;
  }

  test::TemporaryDirectory directory;
};

using Names = std::vector<std::string>;

TEST_F(TextFilesTest, DirectoriesAreWalkedInOneOrderWithoutHiddenEntries) {
  directory.write("b/two.txt", "x");
  directory.write("b/deep/one.txt", "x");
  directory.write("a.txt", "x");
  directory.write(".hidden", "x");
  directory.write("b/.git/config", "x");
  std::filesystem::create_directory_symlink(at("b"), at("link"));
  std::filesystem::create_symlink(at("nowhere"), at("dangling"));

  EXPECT_EQ(list({at("")}), (Names{"a.txt", "b/deep/one.txt", "b/two.txt"}));
  const TextFiles found = list_text_files("data.train", {at("")});
  EXPECT_EQ(found.hidden.size(), 2U);
  ASSERT_EQ(found.passed_over.size(), 1U);
  EXPECT_EQ(found.passed_over[0].path, at("dangling"));
}

TEST_F(TextFilesTest, LinkedDirectoriesAreWalkedAndACycleEnds) {
  const test::TemporaryDirectory elsewhere;
  elsewhere.write("far/one.txt", "x");
  directory.write("a/two.txt", "x");
  std::filesystem::create_directory_symlink(elsewhere.path() / "far", at("a/far"));
  std::filesystem::create_directory_symlink(at(""), at("a/up"));
  std::filesystem::create_symlink("self", at("a/self"));
  const TextFiles found = list_text_files("data.train", {at("")});
  ASSERT_EQ(found.files.size(), 2U);
  std::vector<std::string> names;
  for (const TextFile& file : found.files) {
    names.push_back(file.path.filename().string());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (Names{"one.txt", "two.txt"}));
  EXPECT_EQ(list({at("**/two.txt"), at("a/up/a/up/a/two.txt")}), (Names{"a/two.txt"}));
}

TEST_F(TextFilesTest, TwoStarsReachEveryDepth) {
  for (const char* name : {"1.txt", "a/2.txt", "a/b/3.txt", "a/b/c/4.txt", "a/b/c/5.md"}) {
    directory.write(name, "x");
  }
  EXPECT_EQ(list({at("**/*.txt")}), (Names{"1.txt", "a/2.txt", "a/b/3.txt", "a/b/c/4.txt"}));
}

// What the run writes there would change the order of samples at every start.
TEST_F(TextFilesTest, MemphissOwnWorkIsPassedOver) {
  directory.write("a.txt", "x");
  directory.write("runs/own/config.yaml", "x");
  directory.write("runs/earlier/config.yaml", "x");
  directory.write("runs/earlier/metrics.jsonl", "x");
  directory.write("runs/earlier/notes/a.txt", "x");
  directory.write("copies/step-00000010/manifest.json", "x");
  directory.write("copies/step-00000010/COMMIT", "x");
  directory.write("other/config.yaml", "x");
  const Names expected{"a.txt", "other/config.yaml"};
  for (const std::string& entry : {at(""), at("**")}) {
    const TextFiles found = list_text_files("data.train", {entry}, at("runs/own"));
    Names names;
    for (const TextFile& file : found.files) {
      names.push_back(std::filesystem::relative(file.path, directory.path()).string());
    }
    EXPECT_EQ(names, expected) << entry;
    ASSERT_EQ(found.passed_over.size(), 3U) << entry;
    EXPECT_EQ(found.passed_over[0].path, at("copies/step-00000010"));
    EXPECT_EQ(found.passed_over[2].path, at("runs/own"));
    EXPECT_EQ(found.passed_over[2].reason, "it is run.dir");
  }
  EXPECT_EQ(list_text_files("data.train", {at("")}, at("runs/new")).passed_over.size(), 2U)
      << "a run.dir that is not there yet";
  // What is named is read: somebody has written it there.
  EXPECT_EQ(list({at("runs/earlier/notes/*.txt")}), (Names{"runs/earlier/notes/a.txt"}));
  EXPECT_EQ(list({at("runs/earlier/notes/a.txt")}), (Names{"runs/earlier/notes/a.txt"}));
}

TEST_F(TextFilesTest, TextBesideARunsFilesIsReadWithoutThem) {
  for (const char* name :
       {"a.txt", "config.yaml", "metrics.jsonl", "step-00000010/manifest.json"}) {
    directory.write(name, "x");
  }
  for (const std::string& entry : {at(""), at("*"), at("**")}) {
    const TextFiles found = list_text_files("data.train", {entry}, at(""));
    ASSERT_EQ(found.files.size(), 1U) << entry;
    EXPECT_EQ(found.files[0].path, at("a.txt"));
    EXPECT_EQ(found.passed_over.size(), 3U) << entry;
  }
}

TEST_F(TextFilesTest, AFileThatIsNamedTwiceIsSaid) {
  const std::string file = directory.write("a.txt", "x");
  EXPECT_TRUE(list_text_files("data.train", {file, at("*.txt"), at("")}).repeated.empty());
  const TextFiles twice = list_text_files("data.train", {file, at("./a.txt")});
  EXPECT_EQ(twice.files.size(), 1U);
  EXPECT_EQ(twice.repeated.size(), 1U);
}

TEST_F(TextFilesTest, AFileIsListedOnceHoweverItIsReached) {
  const std::string file = directory.write("a.txt", "x");
  directory.write("sub/b.txt", "x");
  std::filesystem::create_symlink(file, at("sub/link.txt"));
  EXPECT_EQ(list({at("*.txt"), at(""), file, at("sub/../a.txt")}), (Names{"a.txt", "sub/b.txt"}));
}

TEST_F(TextFilesTest, AFileKnowsWhatAskedForIt) {
  const std::string file = directory.write("a.txt", "x");
  directory.write("b.txt", "x");
  for (const auto& entries : {Names{file, at("*.txt")}, Names{at("*.txt"), file}}) {
    const TextFiles list = list_text_files("data.train", entries);
    ASSERT_EQ(list.files.size(), 2U);
    EXPECT_EQ(list.files[0].origin, TextFile::Origin::named);
    EXPECT_EQ(list.files[1].origin, TextFile::Origin::matched);
  }
  EXPECT_EQ(list_text_files("data.train", {at("")}).files[0].origin, TextFile::Origin::walked);
}

TEST_F(TextFilesTest, PatternsFollowGlob) {
  directory.write("a1.txt", "x");
  directory.write("a2.md", "x");
  directory.write("b1.txt", "x");
  directory.write("a3/inner.txt", "x");
  EXPECT_EQ(list({at("a*")}), (Names{"a1.txt", "a2.md", "a3/inner.txt"}));
  EXPECT_EQ(list({at("[ab]1.txt")}), (Names{"a1.txt", "b1.txt"}));
  // A file whose name has the letters of a pattern is a file first.
  directory.write("[ab]1.txt", "x");
  EXPECT_EQ(list({at("[ab]1.txt")}), (Names{"[ab]1.txt"}));
}

TEST_F(TextFilesTest, AHiddenEntryThatIsNamedIsRead) {
  EXPECT_EQ(list({directory.write(".notes", "x")}), (Names{".notes"}));
  directory.write(".corpus/a.txt", "x");
  EXPECT_EQ(list({at(".corpus")}), (Names{".corpus/a.txt"}));
}

TEST_F(TextFilesTest, AnEntryThatMatchesNothingIsAnError) {
  for (const std::string& entry : {at("absent.txt"), at("*.nothing"), std::string()}) {
    const std::string text =
        test::error_text<DataError>([&] { list_text_files("data.validation", {entry}); });
    EXPECT_TRUE(test::follows_grammar(text));
    EXPECT_NE(text.find("data.validation"), std::string::npos) << text;
    EXPECT_NE(text.find("'" + entry + "'"), std::string::npos) << text;
  }
  EXPECT_TRUE(list({at("")}).empty()) << "an empty directory is no error here";
}

TEST_F(TextFilesTest, ADeviceIsNotAFile) {
  const std::string text =
      test::error_text<DataError>([] { list_text_files("data.train", {"/dev/null"}); });
  EXPECT_TRUE(test::follows_grammar(text));
}

}  // namespace
}  // namespace memphis
