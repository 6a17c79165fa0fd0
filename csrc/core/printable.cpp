// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/printable.h"

#include <array>
#include <cstddef>

#include <spdlog/fmt/fmt.h>

namespace memphis {
namespace {

struct Character {
  std::size_t num_bytes = 1;
  std::uint32_t code = 0;
  bool valid = false;
};

// The first of `text`, which is not empty. As the Unicode Standard has it (table 3-7): no longer
// forms than needed, no surrogates, nothing beyond U+10FFFF.
Character first_of(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) {
    return {1, lead, true};
  }
  const std::size_t num_bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < num_bytes) {
    return {};
  }
  std::uint32_t code = lead & (0x7FU >> num_bytes);
  for (std::size_t i = 1; i < num_bytes; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) {
      return {};
    }
    code = code << 6U | (byte(i) & 0x3FU);
  }
  constexpr std::array<std::uint32_t, 5> kLeast = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  if (code < kLeast[num_bytes] || code > 0x10FFFF || surrogate) {
    return {};
  }
  return {num_bytes, code, true};
}

bool is_control(std::uint32_t code) {
  const auto within = [code](std::uint32_t first, std::uint32_t last) {
    return code >= first && code <= last;
  };
  return within(0, 0x1F) || within(0x7F, 0x9F) ||  // C0, DEL and C1
         within(0x200E, 0x200F) || within(0x2028, 0x202E) || within(0x2066, 0x2069);
}

}  // namespace

std::string printable(std::string_view text, Lines lines) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Character character = first_of(text);
    const std::uint32_t code = character.code;
    if (!character.valid) {
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
    } else if (lines == Lines::kept && (code == '\n' || code == '\t')) {
      result += text.front();
    } else if (code == '\n') {
      result += "\\n";
    } else if (code == '\t') {
      result += "\\t";
    } else if (code == '\r') {
      result += "\\r";
    } else if (code == '\\' && lines == Lines::joined) {
      result += "\\\\";
    } else if (is_control(code)) {
      result += fmt::format("\\u{:04x}", code);
    } else {
      result += text.substr(0, character.num_bytes);
    }
    text.remove_prefix(character.num_bytes);
  }
  return result;
}

std::size_t utf8_length(std::string_view text) {
  const Character character = first_of(text);
  return character.valid ? character.num_bytes : 0;
}

}  // namespace memphis
