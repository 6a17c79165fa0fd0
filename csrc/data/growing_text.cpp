// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/growing_text.h"

#include <algorithm>

#include "csrc/data/utf8.h"

namespace memphis {

GrowingText::GrowingText(const Tokenizer& tokenizer,
                         std::span<const std::int32_t> before,
                         const std::vector<std::string>& stop)
    : tokenizer_(tokenizer), stop_(stop) {
  is_first_ = std::none_of(before.begin(), before.end(), [&](std::int32_t id) {
    return has_text(id) && tokenizer_.begins_text(id);
  });
}

bool GrowingText::add(std::int32_t id) {
  if (!has_text(id)) {
    return false;
  }
  const std::size_t before = text_.size();
  text_ += tokenizer_.piece(id, is_first_);
  is_first_ = is_first_ && !tokenizer_.begins_text(id);
  std::size_t first = std::string::npos;
  for (const std::string& stop : stop_) {
    const std::size_t from = before + 1 > stop.size() ? before + 1 - stop.size() : 0;
    first = std::min(first, text_.find(stop, from));
  }
  if (first == std::string::npos) {
    return false;
  }
  text_.resize(first);
  return true;
}

std::string_view GrowingText::show(bool done) {
  std::size_t end = text_.size();
  if (!done) {
    for (const std::string& stop : stop_) {
      for (std::size_t count = std::min(stop.size() - 1, text_.size()); count > 0; --count) {
        if (text_.ends_with(std::string_view(stop).substr(0, count))) {
          end = std::min(end, text_.size() - count);
          break;
        }
      }
    }
    end = complete_utf8(std::string_view(text_).substr(0, end));
  }
  const std::size_t begin = std::min(shown_, end);
  shown_ = std::max(shown_, end);
  return std::string_view(text_).substr(begin, shown_ - begin);
}

}  // namespace memphis
