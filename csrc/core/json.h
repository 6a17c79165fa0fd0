// SPDX-License-Identifier: Apache-2.0
#pragma once

// nlohmann's JSON, whose reader and writer json.cpp compiles once: they take the compiler longer than
// the rest of most sources.
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

extern template std::string nlohmann::json::dump(int, char, bool, error_handler_t) const;
extern template std::string nlohmann::ordered_json::dump(int, char, bool, error_handler_t) const;

namespace memphis {

// What `text` holds, or nothing where it is not valid JSON.
std::optional<nlohmann::json> parse_json(std::string_view text);

// Whether `text` may be the beginning of a JSON value: what is wrong with it is its end alone.
bool begins_json(std::string_view text);

}  // namespace memphis
