// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace memphis {

// One value of a YAML text. Scalars stay text: their type is the reader's to decide, since YAML's
// own rules turn 010 into 8 and `on` into true.
struct YamlNode {
  enum class Kind : std::uint8_t { null, scalar, sequence, map };

  Kind kind = Kind::null;
  std::string place;  // "tiny.yaml:3:5", or "argument 'run.seed=1'"
  int line = 0;       // counted from 1
  std::string text;   // of a scalar
  bool quoted = false;
  std::vector<YamlNode> keys;   // of a map: scalars, in the order of the text, repeated ones too
  std::vector<YamlNode> items;  // of a sequence; of a map, one a key
};

// A config says everything in its own place, so what YAML has beside scalars, lists and maps is
// refused: anchors, aliases, merge keys, tags, further documents; so are nesting beyond 32 levels,
// more than kMaxYamlBytes, and bytes that are not UTF-8 text. yaml-cpp 0.7 lets most of these
// through. An empty text is a null. ConfigError, with the place, on any of them and on broken
// syntax.
constexpr std::size_t kMaxYamlBytes = std::size_t{1} << 20;
YamlNode parse_yaml(std::string_view text, std::string_view name);

// The same for the value in `argument`, a word of the command line, which is then the place. A
// comment is refused there.
YamlNode parse_yaml_argument(std::string_view value, std::string_view argument);

// How an error text shows the value: "512", "\"512\"", "a list", "a map", "empty".
std::string describe(const YamlNode& node);

}  // namespace memphis
