// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_normalizer.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include <utf8proc.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

int options_of(TextNormalizer::Form form) {
  using Form = TextNormalizer::Form;
  const bool composes = form == Form::nfc || form == Form::nfkc;
  const bool compatible = form == Form::nfkc || form == Form::nfkd;
  return UTF8PROC_STABLE | (composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
         (compatible ? UTF8PROC_COMPAT : 0);
}

void append_form(std::string_view part, int options, std::string& result) {
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t bytes =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(part.data()),
                   static_cast<utf8proc_ssize_t>(part.size()),
                   &mapped,
                   static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(mapped, std::free);
  if (bytes == UTF8PROC_ERROR_NOMEM) {
    throw std::bad_alloc();
  }
  require(bytes >= 0, "a text to normalize is UTF-8");
  result.append(reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(bytes));
}

// utf8proc 2.8 drops U+11A7 behind a syllable of Hangul. It composes with nothing, so that what
// stands in front of it is a text of its own.
void append_by_parts(std::string_view part, int options, std::string& result) {
  constexpr std::string_view kNoTrailingJamo = "\xE1\x86\xA7";
  std::size_t found = 0;
  for (std::size_t begin = 0; begin < part.size(); begin = found) {
    found = std::min(part.find(kNoTrailingJamo, begin + 1), part.size());
    append_form(part.substr(begin, found - begin), options, result);
  }
}

// ASCII is as it is in every form, but for the letter in front of what may combine with it: only
// stretches of other characters are asked about, each with that letter.
std::string in_form(std::string_view text, TextNormalizer::Form form) {
  const int options = options_of(form);
  const auto is_ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  std::string result;
  result.reserve(text.size());
  for (std::size_t begin = 0; begin < text.size();) {
    const auto* const first = std::find_if_not(text.begin() + begin, text.end(), is_ascii);
    auto other = static_cast<std::size_t>(first - text.begin());
    if (other == text.size()) {
      result += text.substr(begin);
      break;
    }
    const auto* const after = std::find_if(first, text.end(), is_ascii);
    other -= other > begin ? 1 : 0;
    result += text.substr(begin, other - begin);
    begin = static_cast<std::size_t>(after - text.begin());
    append_by_parts(text.substr(other, begin - other), options, result);
  }
  return result;
}

std::string with_matches_replaced(std::string_view text,
                                  const WordPattern& what,
                                  std::string_view by) {
  std::string result;
  for (std::size_t begin = 0; begin < text.size();) {
    const WordPattern::Match match = what.find(text, begin);
    result += text.substr(begin, match.begin - begin);
    if (match.end > match.begin) {
      result += by;
    }
    begin = match.end;
  }
  return result;
}

struct Apply {
  std::string_view text;

  std::string operator()(const TextNormalizer::Prepend& step) const {
    return text.empty() ? std::string() : step.text + std::string(text);
  }
  std::string operator()(const TextNormalizer::Replace& step) const {
    return with_replaced(text, step.what, step.by);
  }
  std::string operator()(const TextNormalizer::ReplaceMatches& step) const {
    return with_matches_replaced(text, step.what, step.by);
  }
  std::string operator()(TextNormalizer::Form form) const { return in_form(text, form); }
};

}  // namespace

std::string TextNormalizer::apply(std::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    result = std::visit(Apply{result}, step);
  }
  return result;
}

std::string with_replaced(std::string_view text, std::string_view what, std::string_view by) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t begin = 0;;) {
    const std::size_t found = what.empty() ? std::string_view::npos : text.find(what, begin);
    result += text.substr(begin, found - begin);
    if (found == std::string_view::npos) {
      return result;
    }
    result += by;
    begin = found + what.size();
  }
}

}  // namespace memphis
