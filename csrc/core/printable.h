// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace memphis {

enum class Lines : std::uint8_t {
  joined,  // a line's end is escaped too, and so is the backslash: one line, which says what was there
  kept,  // ends of lines and tabs stay, and backslashes
};

// Text of anybody's (a model's sample, a file's name or contents) as a terminal or a log may have
// it: control characters, C1 and those that turn the direction of writing among them, as \n, \u001b
// and the like, as JSON writes them, and bytes that are not UTF-8 as \xff. All else stays.
std::string printable(std::string_view text, Lines lines = Lines::joined);

// The length of the character of UTF-8 that `text`, which is not empty, begins with; 0 where it
// begins with none.
std::size_t utf8_length(std::string_view text);

}  // namespace memphis
