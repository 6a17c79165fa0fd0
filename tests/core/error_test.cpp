// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/error.h"

#include <gtest/gtest.h>

#include "tests/support/error_text.h"

namespace memphis {
namespace {

void called_outside_its_contract(int value) {
  require(value > 0, "a value is positive");
}

TEST(Require, NamesThePlaceAndTheFunction) {
  EXPECT_NO_THROW(called_outside_its_contract(1));
  const std::string text = test::error_text<ContractError>([] { called_outside_its_contract(0); });
  EXPECT_EQ(text.rfind("a value is positive", 0), 0U) << text;
  EXPECT_NE(text.find("called_outside_its_contract"), std::string::npos) << text;
  EXPECT_NE(text.find("error_test.cpp:"), std::string::npos) << text;
}

// Job scripts act on these numbers: they are part of the interface.
TEST(ExitCode, EachErrorHasItsOwn) {
  EXPECT_EQ(static_cast<int>(ContractError("").code()), 1);
  EXPECT_EQ(static_cast<int>(ConfigError("").code()), 2);
  EXPECT_EQ(static_cast<int>(DataError("").code()), 3);
  EXPECT_EQ(static_cast<int>(CheckpointError("").code()), 4);
  EXPECT_EQ(static_cast<int>(PreflightError("").code()), 5);
  EXPECT_EQ(static_cast<int>(ExitCode::preempted), 10);
  EXPECT_EQ(static_cast<int>(ExitCode::rank_lost), 11);
  EXPECT_EQ(static_cast<int>(ExitCode::hang), 12);
  EXPECT_EQ(static_cast<int>(ExitCode::bad_hardware), 13);
  EXPECT_EQ(static_cast<int>(DivergedError("").code()), 14);
}

TEST(Error, IsCaughtAsOneTypeWithItsText) {
  try {
    throw DataError("no such file (it was moved); restore it");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::data);
    EXPECT_STREQ(error.what(), "no such file (it was moved); restore it");
  }
}

TEST(Grammar, AcceptsTheFormAndNothingElse) {
  EXPECT_TRUE(
      test::follows_grammar("3 does not divide 8 (ranks own whole experts); use 1, 2 or 4"));
  for (const char* text : {"",
                           "it failed",
                           "it failed (because)",
                           "it failed; do this",
                           "it failed (because); ",
                           " (because); do this"}) {
    EXPECT_FALSE(test::follows_grammar(text)) << text;
  }
}

}  // namespace
}  // namespace memphis
