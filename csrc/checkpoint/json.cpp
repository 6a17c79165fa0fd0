// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/json.h"

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/file_kind.h"

namespace memphis {
namespace {

using Json = nlohmann::json;

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view problem) {
  throw CheckpointError(
      fmt::format("{}: {} (the file is damaged or hostile); copy it again from its source",
                  path.string(),
                  problem));
}

// Reads through a text before anything is made of it. Not a callback of the parser that makes it:
// that one goes through all of a list after each of its objects.
class Inspector final : public nlohmann::json_sax<Json> {
 public:
  explicit Inspector(const std::filesystem::path& path) : path_(path) {}

  bool start_object(std::size_t /*num_elements*/) override {
    open();
    keys_.emplace_back();
    return true;
  }
  bool end_object() override {
    keys_.pop_back();
    return close();
  }
  bool start_array(std::size_t /*num_elements*/) override {
    open();
    return true;
  }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    if (!keys_.back().insert(name).second) {
      fail(path_, fmt::format("key '{}' stands twice in its JSON", printable(name)));
    }
    return true;
  }
  bool null() override { return true; }
  bool boolean(bool /*value*/) override { return true; }
  bool number_integer(std::int64_t /*value*/) override { return true; }
  bool number_unsigned(std::uint64_t /*value*/) override { return true; }
  bool number_float(double /*value*/, const std::string& /*text*/) override { return true; }
  bool string(std::string& /*value*/) override { return true; }
  bool binary(Json::binary_t& /*value*/) override { return true; }
  bool parse_error(std::size_t position,
                   const std::string& /*last_token*/,
                   const Json::exception& error) override {
    if (dynamic_cast<const Json::out_of_range*>(&error) != nullptr) {
      fail(path_, "a number of its JSON is out of range");  // too large for a double
    }
    fail(path_, fmt::format("no valid JSON near byte {} of its text", position));
  }

 private:
  void open() {
    if (++depth_ > kMaxJsonDepth) {
      fail(path_, fmt::format("its JSON nests deeper than {}", kMaxJsonDepth));
    }
  }
  bool close() {
    --depth_;
    return true;
  }

  const std::filesystem::path& path_;
  int depth_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
};

}  // namespace

Json parse_json_object(std::string_view text, const std::filesystem::path& path) {
  if (text.find('\0') != std::string_view::npos) {
    fail(path, "there is a NUL byte in its JSON");
  }
  Inspector inspector(path);
  Json::sax_parse(text.begin(), text.end(), &inspector);
  Json root = parse_json(text).value();  // which the inspector would have refused otherwise
  if (!root.is_object()) {
    fail(path, "its JSON is not an object");
  }
  return root;
}

Json read_json_object(const std::filesystem::path& path) {
  std::string text;
  try {
    text = read_text(path);
  } catch (const DataError& error) {
    throw CheckpointError(error.what());
  }
  if (const auto kind = recognise(std::as_bytes(std::span<const char>(text)))) {
    throw CheckpointError(describe(path, *kind));
  }
  return parse_json_object(text, path);
}

std::string printable(const std::string& text) {
  constexpr bool kAsciiOnly = true;
  const std::string quoted = Json(text).dump(-1, ' ', kAsciiOnly, Json::error_handler_t::replace);
  return quoted.substr(1, quoted.size() - 2);
}

}  // namespace memphis
