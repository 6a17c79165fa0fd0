// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace memphis {

// A byte order mark, with which some programs begin what they write.
inline constexpr std::string_view kUtf8Mark = "\xEF\xBB\xBF";

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

// Counts the units that are no characters, of a text that comes piece by piece.
class Utf8Count {
 public:
  void add(std::string_view piece);
  void finish();  // what broke off is none

  std::uint64_t places() const { return places_; }
  std::uint64_t first_byte() const { return first_byte_; }  // of the text, of the first place

 private:
  void count(std::string_view text);

  std::string held_;             // the beginning of a character, which `piece` ended in
  std::uint64_t num_bytes_ = 0;  // that were counted
  std::uint64_t places_ = 0;
  std::uint64_t first_byte_ = 0;
};

// What a reader of text says of them: "3 places are not UTF-8, and are read as U+FFFD (...)".
std::string describe_replaced(std::uint64_t places);

}  // namespace memphis
