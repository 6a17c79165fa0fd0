// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace memphis {

// The bytes of the UTF-8 character that `text` begins with, or of its longest beginning that may
// begin one: the unit that a replacement character stands for (Unicode 15, 3.9, table 3-8, as in
// Python's errors="replace"). `whole` says which of the two. Requires text not to be empty.
struct Utf8Unit {
  std::size_t bytes;
  bool whole;
};
Utf8Unit utf8_unit(std::string_view text);

bool is_utf8(std::string_view text);

// `text` with U+FFFD for each unit that is no character; adds their number to `replaced`.
std::string with_replacements(std::string_view text, std::uint64_t& replaced);

// How many bytes of `text` end in whole characters, so that what follows may be completed by more
// text: all but at most three.
std::size_t complete_utf8(std::string_view text);

}  // namespace memphis
