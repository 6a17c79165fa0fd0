// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/file_kind.h"

#include <string>
#include <string_view>

#include <gtest/gtest.h>

namespace memphis {
namespace {

using std::string_view_literals::operator""sv;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string kind(std::string_view text) {
  const auto found = recognise(bytes_of(text));
  return found ? found->what : "";
}

std::string binary_kind(std::string_view text) {
  const auto found = recognise_binary(bytes_of(text));
  return found ? found->what : "";
}

TEST(FileKind, PointersAreNamedWithWhatFetchesTheFile) {
  const std::string lfs =
      "version https://git-lfs.github.com/spec/v1\noid sha256:" + std::string(64, '0') +
      "\nsize 261336\n";
  EXPECT_EQ(kind(lfs), "a Git LFS pointer to 261336 bytes");
  EXPECT_NE(recognise(bytes_of(lfs))->advice.find("git lfs pull"), std::string::npos);
  EXPECT_EQ(kind("# xet version 0\nfilesize = 12\n"), "a Xet pointer");
  EXPECT_EQ(kind("/annex/objects/SHA256E-s12--ab\n"), "a git-annex pointer");
}

TEST(FileKind, AnswersOfServersAreNamed) {
  for (const char* page : {"<!doctype html><title>401</title>",
                           "\xef\xbb\xbf\n  <HTML lang=en>",
                           "<!DOCTYPE HTML PUBLIC \"-//W3C\">",
                           "<head>"}) {
    EXPECT_EQ(kind(page), "an HTML page") << page;
  }
  EXPECT_TRUE(kind("<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>")
                  .starts_with("an XML error of a server: '<?xml"));
  EXPECT_TRUE(kind("{\n  \"error\": \"gated\"}").starts_with("an error of a server in JSON: '{"));
  EXPECT_TRUE(kind("{\"message\":\"Not Found\"}").starts_with("an error of a server in JSON"));
}

TEST(FileKind, ArchivesAndOtherFormatsAreNamed) {
  EXPECT_EQ(kind("\x1f\x8b\x08\0rest"sv), "a gzip archive");
  EXPECT_EQ(kind("PK\x03\x04rest"), "a zip archive, as torch.save writes");
  EXPECT_EQ(kind("\x80\x02}q"), "a Python pickle");
  EXPECT_EQ(kind("\x80\x04\x95"), "a Python pickle");
  EXPECT_EQ(kind("GGUF\x03"), "a GGUF file");
  EXPECT_EQ(kind(std::string(257, 'x') + "ustar"), "a tar archive");
  EXPECT_EQ(kind(""), "empty");
  EXPECT_EQ(kind(std::string(40, '\0')), "nothing but zeros at its beginning");
  EXPECT_NE(recognise(bytes_of("\x80\x02}q"))->advice.find("safetensors"), std::string::npos);
}

// A header's length may have any lower bytes: 640 is 80 02.
TEST(FileKind, ALengthInFrontOfAHeaderIsNotTakenForAMagic) {
  EXPECT_EQ(kind("\x80\x02\0\0\0\0\0\0{\"a\":"sv), "");
  EXPECT_EQ(kind("\x1f\x8b\x08\0\0\0\0\0{\"a\":"sv), "");
  EXPECT_EQ(binary_kind("\x80\x02\0\0\0\0\0\0{\"a\":"sv), "");
}

TEST(FileKind, TextIsNamedWhereABinaryFileIsExpected) {
  EXPECT_EQ(kind("Entry not found"), "");
  EXPECT_EQ(kind("{\"vocab_size\": 3}"), "");
  EXPECT_EQ(binary_kind("Entry not found"), "text: 'Entry not found'");
  EXPECT_EQ(binary_kind("{\"vocab_size\": 3}"), "JSON: '{\"vocab_size\": 3}'");
  EXPECT_EQ(binary_kind("\x01\x02\x03"), "");
}

// What a hostile file begins with must not move the cursor of the terminal that shows the error.
TEST(FileKind, ShowsNoControlCharacters) {
  for (const std::string& text : {std::string("text\n\twith lines"), std::string(200, 'x')}) {
    const std::string shown = binary_kind(text);
    EXPECT_LT(shown.size(), 90U);
    for (const char c : shown) {
      EXPECT_GE(c, ' ');
    }
  }
  EXPECT_EQ(binary_kind("\033[2J"), "");
}

}  // namespace
}  // namespace memphis
