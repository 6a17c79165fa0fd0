// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/byte_pair_files.h"

#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/data/byte_pair_tokenizer.h"
#include "csrc/data/digest.h"
#include "csrc/data/rank_files.h"
#include "csrc/data/tokenizer_json.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kConfigName = "tokenizer_config.json";
// As the argument of that name of transformers' converter of tiktoken files.
constexpr const char* kPatternKey = "pattern";

// The tokenizer_config.json beside a tokenizer; empty where there is none.
std::string config_beside(const fs::path& path) {
  std::error_code ignored;
  const fs::path config = path.parent_path() / kConfigName;
  return fs::is_regular_file(config, ignored) ? read_text(config) : std::string();
}

std::string fingerprint_of(const std::string& content, const std::string& pattern) {
  return digest_of(digest_of(content) + "\n" + pattern);
}

std::shared_ptr<const Tokenizer> open_tiktoken(const fs::path& path,
                                               const std::string& content,
                                               const std::string& given) {
  const std::string config = config_beside(path);
  nlohmann::ordered_json beside = nlohmann::ordered_json::parse(config, nullptr, false);
  std::string pattern = given;
  if (pattern.empty() && beside.is_object() && beside.contains(kPatternKey) &&
      beside.at(kPatternKey).is_string()) {
    pattern = beside.at(kPatternKey).get<std::string>();
  }
  TiktokenFile file = read_tiktoken(path, content, pattern);
  std::vector<TokenizerFile> files{{.name = "tiktoken.model", .content = content}};
  if (!file.own_pattern.empty()) {
    if (!beside.is_object()) {
      beside = nlohmann::ordered_json::object();
    }
    beside[kPatternKey] = file.own_pattern;
    files.push_back({.name = kConfigName, .content = beside.dump(1) + "\n"});
  }
  return make_byte_pair_tokenizer(
      path, fingerprint_of(content, file.own_pattern), std::move(files), std::move(file.parts));
}

}  // namespace

bool is_tokenizer_json(std::string_view content) {
  const std::size_t first = content.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && content[first] == '{';
}

std::shared_ptr<const Tokenizer> open_byte_pair_tokenizer(const fs::path& path,
                                                          const std::string& content,
                                                          const std::string& pattern) {
  if (!is_tokenizer_json(content)) {
    return open_tiktoken(path, content, pattern);
  }
  if (!pattern.empty()) {
    throw DataError("a pattern is given for the tokenizer and " + path.string() +
                    " is no tiktoken file (it says itself how text is cut); leave it out");
  }
  const std::optional<Json> root = parse_json(content);
  if (!root || !root->is_object()) {
    refuse_tokenizer(path, "it is JSON that breaks off or is damaged", "fetch it again, whole");
  }
  try {
    if (root->contains("regular_tokens")) {
      return make_byte_pair_tokenizer(path,
                                      fingerprint_of(content, {}),
                                      {{.name = "tokenizer.tok.json", .content = content}},
                                      read_grok2(path, *root));
    }
    std::vector<TokenizerFile> files{{.name = "tokenizer.json", .content = content}};
    const std::string config = config_beside(path);
    if (!config.empty()) {
      files.push_back({.name = kConfigName, .content = config});
    }
    return make_byte_pair_tokenizer(
        path,
        fingerprint_of(content, {}),
        std::move(files),
        read_tokenizer_json(path, *root, parse_json(config).value_or(Json())));
  } catch (const Json::exception& error) {
    refuse_tokenizer(path,
                     fmt::format("it lacks what a tokenizer.json has: {}", error.what()),
                     "fetch it again, or name a tokenizer.json");
  }
}

}  // namespace memphis
