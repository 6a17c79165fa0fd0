// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/config/yaml_tree.h"

// The keys of a config, bound to the members of one Config. The table in schema.cpp is the one
// place that lists them: reading, printing, ranges, defaults and the answer to a misspelt key
// follow from it.
namespace memphis {

struct Integer {
  std::int64_t* value;
  std::int64_t low;
  std::int64_t high;
  bool required = false;  // no default: 0 means that it was not given
  // What may be written in place of a number, and the value, below `low`, that it stands for.
  std::string_view word = {};
  std::int64_t word_value = -1;
};

// A time in whole seconds, written as "3h50m" with d, h, m and s; or none, which is 0; or auto.
struct Duration {
  std::int64_t* value;
  std::int64_t auto_value;
};

struct Number {
  enum class Low : std::uint8_t { at_least, above };
  enum class High : std::uint8_t { at_most, below };

  double* value;
  Low low_kind;
  double low;
  High high_kind;
  double high;
};

struct Switch {
  bool* value;
};

struct Text {
  std::string* value;
  bool is_path = false;
};

// Of paths.
struct TextList {
  std::vector<std::string>* value;
  // What an empty list would mean, for a key of which one that is written is a mistake; such a list
  // is left out, and is not printed.
  std::string_view empty_means = {};
  // Where an item may be a map, of a path and of what is said of it: one an item, or none.
  std::vector<DataEntry>* entries = nullptr;
  bool weighted = false;  // a map says its weight
};

// Of integers, each within the range.
struct IntegerList {
  std::vector<std::int64_t>* value;
  std::int64_t low;
  std::int64_t high;
};

// One of a few words, which stand for an enum or for themselves.
struct Choice {
  std::vector<std::string_view> words;
  std::function<std::string_view()> get;
  std::function<void(std::string_view)> set;
};

// Some of a few words, or one that stands alone.
struct WordSet {
  std::vector<std::string_view> words;
  std::vector<std::string_view> alone;
  std::function<std::vector<std::string_view>()> get;
  std::function<void(const std::vector<std::string_view>&)> set;
};

struct Field {
  std::string_view section;
  std::string_view key;
  std::variant<Integer, Duration, Number, Switch, Text, TextList, IntegerList, Choice, WordSet>
      target;

  std::string path() const { return std::string(section) + "." + std::string(key); }
  bool names_paths() const;
};

// In the order in which a config is printed, section by section. `config` must outlive the result.
std::vector<Field> fields_of(Config& config);

// Reads `node` into the field's member. ConfigError if it is of another type or out of range.
void assign(const Field& field, const YamlNode& node);

// The member as YAML that assign reads as the same value, after path_text.h where it is a path;
// nothing for a list that is left out.
std::string print(const Field& field);

// All of them, section by section, without those that print as nothing.
std::string to_yaml(const std::vector<Field>& fields);

// "section.key=value" for each key of the second that the first has another value of.
std::vector<std::string> overrides_between(Config from, Config to);

}  // namespace memphis
