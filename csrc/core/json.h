// SPDX-License-Identifier: Apache-2.0
#pragma once

// nlohmann's JSON, whose reader and writer json.cpp compiles once: they take the compiler longer than
// the rest of most sources.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include <nlohmann/json.hpp>

extern template std::string nlohmann::json::dump(int, char, bool, error_handler_t) const;
extern template std::string nlohmann::ordered_json::dump(int, char, bool, error_handler_t) const;

namespace memphis {

// What is read nests no deeper: the library writes and copies a value by calls within calls, for
// which the stack of a hostile one would be too small. Trees of messages have some tens.
constexpr int kMaxJsonDepth = 256;

// What `text` holds, or nothing where it is not valid JSON or nests deeper than that.
std::optional<nlohmann::json> parse_json(std::string_view text);

// Whether `text` may be the beginning of a JSON value: what is wrong with it is its end alone.
bool begins_json(std::string_view text);

// The member of that name, or `otherwise` where there is none, it is of another type or `object` is
// no object: of a file that anybody may have written.
template <class T>
T member_or(const nlohmann::json& object, const char* name, T otherwise) {
  if (!object.is_object()) {
    return otherwise;
  }
  const auto found = object.find(name);
  if (found == object.end()) {
    return otherwise;
  }
  bool is_one = false;
  if constexpr (std::is_same_v<T, std::string>) {
    is_one = found->is_string();
  } else if constexpr (std::is_unsigned_v<T>) {
    is_one = found->is_number_unsigned();
  } else {
    static_assert(std::is_same_v<T, std::int64_t>);
    is_one = found->is_number_integer();
  }
  return is_one ? found->template get<T>() : otherwise;
}

}  // namespace memphis
