// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <charconv>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "csrc/config/sources.h"
#include "csrc/core/error.h"

// What the rules of a config that no single key decides are checked with.
namespace memphis {

using Paths = std::initializer_list<std::string_view>;

inline std::string text_of(std::int64_t value) {
  return std::to_string(value);
}

// Three digits: sizes in error texts.
inline std::string rounded(double value) {
  std::array<char, 16> buffer;
  const auto result = std::to_chars(
      buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::general, 3);
  return {buffer.data(), result.ptr};
}

// "path value"
inline std::string shown(std::string_view path, std::int64_t value) {
  return std::string(path) + " " + text_of(value);
}

// Of the values of a config, each of which came from somewhere.
class Checker {
 public:
  explicit Checker(const Sources& sources) : sources_(sources) {}

  // ConfigError unless it holds; `paths`: the keys that are at fault, the one to change first.
  void expect(bool holds, Paths paths, const std::string& message) const {
    if (!holds) {
      throw ConfigError(sources_.place(paths) + ": " + message);
    }
  }

 private:
  const Sources& sources_;
};

}  // namespace memphis
