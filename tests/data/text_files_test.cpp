// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_files.h"

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
  EXPECT_EQ(list_text_files("data.train", {at("")}).num_hidden, 2);
}

TEST_F(TextFilesTest, AFileIsListedOnceHoweverItIsReached) {
  const std::string file = directory.write("a.txt", "x");
  directory.write("sub/b.txt", "x");
  std::filesystem::create_symlink(file, at("sub/link.txt"));
  EXPECT_EQ(list({at("*.txt"), at(""), file, at("sub/../a.txt")}), (Names{"a.txt", "sub/b.txt"}));
}

TEST_F(TextFilesTest, OnlyWhatAnEntryNamesIsNamed) {
  const std::string file = directory.write("a.txt", "x");
  directory.write("b.txt", "x");
  for (const auto& entries : {Names{file, at("*.txt")}, Names{at("*.txt"), file}}) {
    const TextFiles list = list_text_files("data.train", entries);
    ASSERT_EQ(list.files.size(), 2U);
    EXPECT_TRUE(list.files[0].named);
    EXPECT_FALSE(list.files[1].named);
  }
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
