// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "csrc/core/json.h"
#include "csrc/data/byte_pair_parts.h"

// Files in which a token's id is the rank of its bytes: what merges follows from them.
namespace memphis {

// Lines of base64 and a rank.
bool is_tiktoken(std::string_view content);

struct TiktokenFile {
  BytePairParts parts;
  // The regular expression that cuts text; empty where it is that of every file of so many ranks.
  std::string own_pattern;
};

// `pattern` as data.tokenizer_pattern. DataError, with the file, where its content is damaged or
// what cuts text is neither given nor known.
TiktokenFile read_tiktoken(const std::filesystem::path& path,
                           std::string_view content,
                           const std::string& pattern);

// The tokenizer.tok.json of Grok-2. Json's errors where it lacks what one has.
BytePairParts read_grok2(const std::filesystem::path& path, const nlohmann::json& root);

}  // namespace memphis
