// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>

// What every key of a config means, for its user. Types, ranges, words and defaults are the schema's
// own; here is what the schema does not know of a key.
namespace memphis {

struct KeyText {
  std::string_view path;  // section.key
  std::string_view unit;  // "tokens"; empty: a bare number, a word or a path
  // What stands for the value where a config gives none and the default is no value of its range;
  // empty: the default is what it says.
  std::string_view derived;
  std::string_view meaning;
};

// One a key, in the order of the schema.
std::span<const KeyText> key_texts();

// For a terminal: of all keys, of a section, or of one `section.key`. ConfigError where `wanted`,
// unless empty, names none, with the nearest.
std::string describe_keys(std::string_view wanted);

// The same of all keys as docs/config.md.
std::string config_reference();

}  // namespace memphis
