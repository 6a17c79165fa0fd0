// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/json.h"

#include <set>
#include <string>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

using Json = nlohmann::json;

// No format that is read here nests deeper than 4.
constexpr int kMaxDepth = 32;

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view problem) {
  throw CheckpointError(
      fmt::format("{}: {} (the file is damaged or hostile); copy it again from its source",
                  path.string(),
                  problem));
}

}  // namespace

Json parse_json_object(std::string_view text, const std::filesystem::path& path) {
  if (text.find('\0') != std::string_view::npos) {
    fail(path, "there is a NUL byte in its JSON");
  }
  std::vector<std::set<std::string>> open_objects;
  const auto refuse_repeated_keys = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) {
      fail(path, fmt::format("its JSON nests deeper than {}", kMaxDepth));
    }
    switch (event) {
      case Json::parse_event_t::object_start:
        open_objects.emplace_back();
        break;
      case Json::parse_event_t::object_end:
        open_objects.pop_back();
        break;
      case Json::parse_event_t::key:
        if (!open_objects.back().insert(parsed.get<std::string>()).second) {
          fail(path,
               fmt::format("key '{}' stands twice in its JSON",
                           printable(parsed.get_ref<const std::string&>())));
        }
        break;
      default:
        break;
    }
    return true;
  };
  Json root;
  try {
    root = Json::parse(text.begin(), text.end(), refuse_repeated_keys);
  } catch (const Json::parse_error& error) {
    fail(path, fmt::format("no valid JSON near byte {} of its text", error.byte));
  } catch (const Json::out_of_range& error) {  // a number too large for a double
    fail(path, "a number of its JSON is out of range");
  }
  if (!root.is_object()) {
    fail(path, "its JSON is not an object");
  }
  return root;
}

std::string printable(const std::string& text) {
  constexpr bool kAsciiOnly = true;
  const std::string quoted = Json(text).dump(-1, ' ', kAsciiOnly, Json::error_handler_t::replace);
  return quoted.substr(1, quoted.size() - 2);
}

}  // namespace memphis
