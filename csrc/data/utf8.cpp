// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/utf8.h"

#include <algorithm>
#include <cstring>

namespace memphis {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// The first byte from `i` on that is not ASCII.
std::size_t skip_ascii(std::string_view text, std::size_t i) {
  constexpr std::uint64_t kHighBits = 0x8080808080808080;
  for (std::uint64_t word = 0; i + sizeof(word) <= text.size(); i += sizeof(word)) {
    std::memcpy(&word, text.data() + i, sizeof(word));
    if ((word & kHighBits) != 0) {
      break;
    }
  }
  while (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80) {
    ++i;
  }
  return i;
}

}  // namespace

Utf8Unit utf8_unit(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) {
    return {1, true};
  }
  const std::size_t length = first < 0xC2   ? 0
                             : first < 0xE0 ? 2
                             : first < 0xF0 ? 3
                             : first < 0xF5 ? 4
                                            : 0;
  if (length == 0) {
    return {1, false};
  }
  // The second byte's range keeps out overlong forms, surrogates and what lies beyond U+10FFFF.
  const unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  std::size_t i = 1;
  while (i < length && i < text.size() && byte(i) >= (i == 1 ? low : 0x80) &&
         byte(i) <= (i == 1 ? high : 0xBF)) {
    ++i;
  }
  return {i, i == length};
}

bool is_utf8(std::string_view text) {
  for (std::size_t i = skip_ascii(text, 0); i < text.size(); i = skip_ascii(text, i)) {
    const Utf8Unit unit = utf8_unit(text.substr(i));
    if (!unit.whole) {
      return false;
    }
    i += unit.bytes;
  }
  return true;
}

std::string with_replacements(std::string_view text, std::uint64_t& replaced) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t plain = skip_ascii(text, i);
    result.append(text.substr(i, plain - i));
    i = plain;
    if (i == text.size()) {
      break;
    }
    const Utf8Unit unit = utf8_unit(text.substr(i));
    result.append(unit.whole ? text.substr(i, unit.bytes) : kReplacement);
    replaced += unit.whole ? 0 : 1;
    i += unit.bytes;
  }
  return result;
}

std::size_t complete_utf8(std::string_view text) {
  for (std::size_t back = 1; back <= std::min<std::size_t>(3, text.size()); ++back) {
    const std::string_view tail = text.substr(text.size() - back);
    const auto first = static_cast<unsigned char>(tail[0]);
    if (first >= 0xC0) {
      const Utf8Unit unit = utf8_unit(tail);
      const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
      const bool may_go_on =
          !unit.whole && unit.bytes == back && back < length && first >= 0xC2 && first < 0xF5;
      return may_go_on ? text.size() - back : text.size();
    }
    if (first < 0x80) {
      break;
    }
  }
  return text.size();
}

void Utf8Count::add(std::string_view piece) {
  held_ += piece;
  const std::size_t whole = complete_utf8(held_);
  count(std::string_view(held_).substr(0, whole));
  held_.erase(0, whole);
}

void Utf8Count::finish() {
  count(held_);
  held_.clear();
}

void Utf8Count::count(std::string_view text) {
  for (std::size_t i = skip_ascii(text, 0); i < text.size(); i = skip_ascii(text, i)) {
    const Utf8Unit unit = utf8_unit(text.substr(i));
    if (!unit.whole) {
      first_byte_ = places_ == 0 ? num_bytes_ + i : first_byte_;
      ++places_;
    }
    i += unit.bytes;
  }
  num_bytes_ += text.size();
}

std::string describe_replaced(std::uint64_t places) {
  return std::to_string(places) +
         " places are not UTF-8, and are read as U+FFFD (convert the text, as in `iconv -f LATIN1 "
         "-t UTF-8`)";
}

}  // namespace memphis
