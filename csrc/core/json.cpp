// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/json.h"

#include <cstddef>
#include <cstdint>
#include <utility>

template std::string nlohmann::json::dump(int, char, bool, error_handler_t) const;
template std::string nlohmann::ordered_json::dump(int, char, bool, error_handler_t) const;

namespace memphis {

namespace {

// Of brackets outside of texts, closed or not.
bool nests_too_deep(std::string_view text) {
  int depth = 0;
  bool in_text = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_text) {
      i += c == '\\' ? 1 : 0;
      in_text = c != '"';
    } else if (c == '"') {
      in_text = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxJsonDepth) {
        return true;
      }
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

std::optional<nlohmann::json> parse_json(std::string_view text) {
  if (nests_too_deep(text)) {
    return std::nullopt;
  }
  auto value = nlohmann::json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? std::nullopt : std::optional(std::move(value));
}

bool begins_json(std::string_view text) {
  struct Reader final : nlohmann::json_sax<nlohmann::json> {
    bool null() override { return true; }
    bool boolean(bool /*value*/) override { return true; }
    bool number_integer(std::int64_t /*value*/) override { return true; }
    bool number_unsigned(std::uint64_t /*value*/) override { return true; }
    bool number_float(double /*value*/, const std::string& /*text*/) override { return true; }
    bool string(std::string& /*value*/) override { return true; }
    bool binary(nlohmann::json::binary_t& /*value*/) override { return true; }
    bool start_object(std::size_t /*size*/) override { return true; }
    bool key(std::string& /*name*/) override { return true; }
    bool end_object() override { return true; }
    bool start_array(std::size_t /*size*/) override { return true; }
    bool end_array() override { return true; }
    bool parse_error(std::size_t at,
                     const std::string& /*token*/,
                     const nlohmann::json::exception& /*error*/) override {
      position = at;
      return false;
    }
    std::size_t position = 0;
  } reader;
  // Not within a character, which is another fault.
  while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0x80U) != 0) {
    text.remove_suffix(1);
  }
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  return reader.position >= text.size();
}

}  // namespace memphis
