// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/printable.h"

#include <string>

#include <gtest/gtest.h>

namespace memphis::test {
namespace {

TEST(Printable, LeavesTextAsItIs) {
  const std::string text = "plain ASCII, accents \xc3\xa9, \xe6\xbc\xa2, \xf0\x9f\x98\x80 ~";
  EXPECT_EQ(printable(text), text);
  EXPECT_EQ(printable(""), "");
}

TEST(Printable, EscapesWhatATerminalObeys) {
  EXPECT_EQ(printable("\x1b[31mred"), "\\u001b[31mred");
  EXPECT_EQ(printable(std::string("a\0b\x7f", 4)), "a\\u0000b\\u007f");
  EXPECT_EQ(printable("\xc2\x9b"), "\\u009b") << "C1: a control sequence in one character";
  EXPECT_EQ(printable("\xe2\x80\xae"), "\\u202e") << "turns the direction of writing";
  EXPECT_EQ(printable("\r\b"), "\\r\\u0008");
}

TEST(Printable, JoinsLinesOrKeepsThem) {
  EXPECT_EQ(printable("a\n\tb\\n"), "a\\n\\tb\\\\n");
  EXPECT_EQ(printable("a\n\tb\\n", Lines::kept), "a\n\tb\\n");
  EXPECT_EQ(printable("a\r\n", Lines::kept), "a\\r\n");
}

// Tells apart what differs: an escape that was in the text has its backslash doubled.
TEST(Printable, SaysWhatWasThere) {
  EXPECT_NE(printable("\x1b"), printable("\\u001b"));
  EXPECT_NE(printable("\n"), printable("\\n"));
}

TEST(Printable, EscapesBytesThatAreNotUtf8) {
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("\x80z"), "\\x80z") << "continues nothing";
  EXPECT_EQ(printable("\xc3"), "\\xc3") << "cut short";
  EXPECT_EQ(printable("\xe6\xbc"), "\\xe6\\xbc");
  EXPECT_EQ(printable("\xe6\x41\xa2"), "\\xe6\x41\\xa2") << "the letter stays";
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf") << "longer than needed";
  EXPECT_EQ(printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");
  EXPECT_EQ(printable("\xf0\x80\x80\xaf"), "\\xf0\\x80\\x80\\xaf");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80") << "a surrogate";
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80") << "beyond U+10FFFF";
  EXPECT_EQ(printable("\xf4\x8f\xbf\xbf"), "\xf4\x8f\xbf\xbf") << "the last";
}

}  // namespace
}  // namespace memphis::test
