// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/core/error.h"

namespace memphis::doctor {

enum class State : std::uint8_t { good, bad, unchecked };

// One line of the report: what was looked at, the verdict, the measured value and what to do.
struct Finding {
  std::string what;  // "memlock"
  State state = State::good;
  std::string measured;                 // "64 KiB"; of what is unchecked, why
  std::string advice = {};              // of what is bad
  ExitCode code = ExitCode::preflight;  // that the program ends with, of what is bad
  // What is good on no node is not bad: they are built that way.
  bool beside_others = false;
};

Finding good(std::string what, std::string measured);
Finding bad(std::string what, std::string measured, std::string advice);
Finding unchecked(std::string what, std::string why);

// As text that travels between ranks.
std::string encode(std::span<const Finding> findings);
std::vector<Finding> decode(std::string_view text);

// "  bad   memlock      64 KiB; set it to unlimited".
std::string line_of(const Finding& finding);

// "3.5 GiB".
std::string bytes_text(double bytes);

}  // namespace memphis::doctor
