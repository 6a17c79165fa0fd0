// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cctype>
#include <cstdint>
#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis::test {

// Lines 1 to 7 are the model's, 8 and 9 the schedule's.
inline const std::string kModel =
    "model:\n"
    "  vocab_size: 512\n"
    "  num_layers: 2\n"
    "  d_model: 64\n"
    "  num_heads: 4\n"
    "  ffn_dim: 128\n"
    "  num_experts: 4\n";
inline const std::string kSchedule =
    "schedule:\n"
    "  steps: 100\n";
inline const std::string kTiny = kModel + kSchedule;

inline std::string with_model(const std::string& lines) {
  return kModel + lines + kSchedule;
}
inline std::string with(const std::string& lines) {
  return kTiny + lines;
}
inline std::string here() {
  return std::filesystem::current_path().string();
}

// A config that is refused, and what the user reads, word for word: a text that changes is a change
// to look at.
struct BadConfig {
  std::string name;
  std::string text;
  std::vector<std::string> overrides;
  ExitCode code;
  std::string message;
  std::int64_t num_ranks = 1;
};

inline void PrintTo(const BadConfig& bad, std::ostream* out) {
  *out << bad.name;
}

inline std::string case_name(const testing::TestParamInfo<BadConfig>& info) {
  std::string name = info.param.name;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) {
      c = '_';
    }
  }
  return name;
}

inline void expect_refused(const BadConfig& bad) {
  try {
    parse_config(bad.text, "tiny.yaml", bad.overrides, Check::machine, bad.num_ranks);
    FAIL() << "was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), bad.message);
    EXPECT_EQ(error.code(), bad.code);
    EXPECT_TRUE(follows_grammar(error.what()));
  }
}

}  // namespace memphis::test
