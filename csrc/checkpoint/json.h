// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "csrc/core/json.h"

namespace memphis {

// The JSON object in `text`, or CheckpointError naming `path`. Stricter than the library: a
// repeated key, a NUL byte (where the library stops reading and ignores the rest), nesting deeper
// than kMaxJsonDepth and a top level that is not an object are refused.
nlohmann::json parse_json_object(std::string_view text, const std::filesystem::path& path);

// The JSON object that a file holds. CheckpointError as above, if the file cannot be read, and, by
// its name, if it is what a download left in its place: a pointer, a page, nothing.
nlohmann::json read_json_object(const std::filesystem::path& path);

// `text` as ASCII without control characters, escaped as in JSON: what a hostile file names a
// tensor must not move the cursor of the terminal that shows the error.
std::string printable(const std::string& text);

}  // namespace memphis
