// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/scalar.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <system_error>

#include "csrc/core/error.h"
#include "csrc/core/printable.h"

namespace memphis {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// Takes what `accept` accepts from the front of `text`; returns how much.
std::size_t skip_digits(std::string_view& text) {
  const auto end = std::find_if_not(text.begin(), text.end(), is_digit);
  const auto count = static_cast<std::size_t>(end - text.begin());
  text.remove_prefix(count);
  return count;
}

bool skip_any_of(std::string_view& text, std::string_view characters) {
  if (text.empty() || characters.find(text.front()) == std::string_view::npos) {
    return false;
  }
  text.remove_prefix(1);
  return true;
}

bool skip_integer(std::string_view& text) {
  skip_any_of(text, "-");
  const bool leading_zero = text.starts_with('0');
  const std::size_t count = skip_digits(text);
  return count == 1 || (count > 1 && !leading_zero);
}

bool is_integer(std::string_view text) {
  return skip_integer(text) && text.empty();
}

bool is_number(std::string_view text) {
  if (!skip_integer(text)) {
    return false;
  }
  if (skip_any_of(text, ".") && skip_digits(text) == 0) {
    return false;
  }
  if (skip_any_of(text, "eE")) {
    skip_any_of(text, "+-");
    return skip_digits(text) > 0 && text.empty();
  }
  return text.empty();
}

std::optional<double> to_double(std::string_view text) {
  double value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

std::optional<std::int64_t> to_integer(std::string_view text, int base) {
  std::int64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

bool holds_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    if (length == 0) {
      return false;
    }
    text.remove_prefix(length);
  }
  return true;
}

void require_plain_scalar(const YamlNode& node, const std::string& path, const std::string& kind) {
  if (node.kind != YamlNode::Kind::scalar) {
    refuse(node, path, "its value is " + kind, "write one");
  }
  if (node.quoted) {
    refuse(node,
           path,
           "its value is " + kind + ", and what is in quotes is a string",
           "remove the quotes");
  }
}

// What `text` means to those programs that read more than decimal digits as a number, as an offer.
// Never taken as the value: 010 is 8 to one YAML reader and 10 to the next.
void refuse_other_spellings(const YamlNode& node,
                            const std::string& path,
                            const std::string& kind) {
  const std::string& text = node.text;
  if (text.find('_') != std::string::npos) {
    std::string digits = text;
    std::erase(digits, '_');
    if (is_number(digits)) {
      refuse(node, path, "digits are not grouped", "write " + digits);
    }
  }
  if (text.starts_with('+') && is_number(text.substr(1))) {
    refuse(node, path, "a plus sign is not written", "write " + text.substr(1));
  }
  if (text.starts_with("0x") || text.starts_with("0o") || text.starts_with("0b")) {
    const int base = text[1] == 'x' ? 16 : text[1] == 'o' ? 8 : 2;
    if (const auto value = to_integer(text.substr(2), base)) {
      refuse(node, path, kind + " is written in decimal", "write " + std::to_string(*value));
    }
  }
  if (text.size() > 1 && text.starts_with('0') && std::all_of(text.begin(), text.end(), is_digit)) {
    const std::size_t first = std::min(text.find_first_not_of('0'), text.size() - 1);
    std::string fix = "write " + text.substr(first);
    if (const auto octal = to_integer(text, 8)) {
      fix += ", or " + std::to_string(*octal) + " if octal was meant";
    }
    refuse(node, path, "some readers take a leading zero as octal", fix);
  }
  if (text.starts_with('.') && is_number("0" + text)) {
    refuse(node, path, "a digit stands before the point", "write 0" + text);
  }
  if (text.ends_with('.') && is_integer(text.substr(0, text.size() - 1))) {
    refuse(node, path, "a digit stands after the point", "write " + text + "0");
  }
}

}  // namespace

void refuse(const YamlNode& node,
            const std::string& path,
            const std::string& why,
            const std::string& fix) {
  throw ConfigError(node.place + ": " + path + " is " + describe(node) + " (" + why + "); " + fix);
}

std::int64_t parse_integer(const YamlNode& node, const std::string& path) {
  constexpr double kExact = 9007199254740992.0;  // 2^53: every integer up to here is a double
  require_plain_scalar(node, path, "an integer");
  const std::string& text = node.text;
  if (is_integer(text)) {
    using Limits = std::numeric_limits<std::int64_t>;
    const auto value = to_integer(text, 10);
    return value ? *value : text.starts_with('-') ? Limits::min() : Limits::max();
  }
  refuse_other_spellings(node, path, "an integer");
  if (is_number(text)) {
    const auto value = to_double(text);
    if (value && std::trunc(*value) == *value && std::abs(*value) <= kExact) {
      refuse(node,
             path,
             "an integer is written in digits alone",
             "write " + std::to_string(static_cast<std::int64_t>(*value)));
    }
    refuse(node, path, "its value is an integer", "write a whole number");
  }
  refuse(node, path, "its value is an integer", "write one");
}

double parse_number(const YamlNode& node, const std::string& path) {
  require_plain_scalar(node, path, "a number");
  const std::string& text = node.text;
  if (is_number(text)) {
    if (const auto value = to_double(text)) {
      return *value;
    }
    refuse(node,
           path,
           "a number is zero or has a magnitude of 2.3e-308 to 1.8e308",
           "write one in that range");
  }
  refuse_other_spellings(node, path, "a number");
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  for (const std::string_view word : {"nan", ".nan", "inf", ".inf", "-inf", "-.inf", "+.inf"}) {
    if (lower == word) {
      refuse(node, path, "a number is finite", "write one that is");
    }
  }
  refuse(node, path, "its value is a number", "write one");
}

bool parse_bool(const YamlNode& node, const std::string& path) {
  if (node.kind == YamlNode::Kind::scalar && !node.quoted) {
    if (node.text == "true" || node.text == "false") {
      return node.text == "true";
    }
  }
  refuse(node, path, "its value is true or false", "write one of these, without quotes");
}

std::string parse_string(const YamlNode& node, const std::string& path) {
  if (node.kind != YamlNode::Kind::scalar) {
    refuse(node, path, "its value is a string", "write one, in quotes if it has signs of YAML");
  }
  if (node.text.find('\0') != std::string::npos) {
    refuse(node, path, "it holds a NUL, at which the system ends a string", "remove it");
  }
  if (!holds_utf8(node.text)) {
    refuse(node,
           path,
           "it is not UTF-8, in which configs, checkpoints and logs are written",
           "write it in UTF-8, or give the file another name");
  }
  return node.text;
}

std::string print_number(double value) {
  std::array<char, 32> buffer;  // the longest shortest form has 24 characters
  const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return {buffer.data(), result.ptr};
}

}  // namespace memphis
