// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "csrc/config/yaml_tree.h"

namespace memphis {

// The value that `node` spells. Stricter than YAML, so that a file means to every reader what it
// means to this one. A node that spells none throws ConfigError; `path` is the key, for its text.
//
//   integer  -?(0|[1-9][0-9]*); beyond 64 bits the result is the nearest, which no range contains
//   number   an integer, or with a fraction after a digit, or with an exponent; finite
//   bool     true | false
//   string   any scalar of UTF-8 without a NUL, plain or quoted
std::int64_t parse_integer(const YamlNode& node, const std::string& path);
double parse_number(const YamlNode& node, const std::string& path);
bool parse_bool(const YamlNode& node, const std::string& path);
std::string parse_string(const YamlNode& node, const std::string& path);

// Throws the ConfigError "<place>: <path> is <value> (<why>); <fix>".
[[noreturn]] void refuse(const YamlNode& node,
                         const std::string& path,
                         const std::string& why,
                         const std::string& fix);

// The shortest text that parse_number reads as the same bits.
std::string print_number(double value);

}  // namespace memphis
