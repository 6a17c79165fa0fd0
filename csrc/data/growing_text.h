// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "csrc/data/tokenizer.h"

namespace memphis {

// A text that grows by one token after another, and what of it may be shown meanwhile: characters of
// which all bytes are there, and nothing that may yet become one of the texts at which it ends.
class GrowingText {
 public:
  // Goes on behind the ids `before`, of which nothing is shown. `tokenizer` and `stop`, none of which
  // is empty, outlive it.
  GrowingText(const Tokenizer& tokenizer,
              std::span<const std::int32_t> before,
              const std::vector<std::string>& stop);

  // True where the text has come to one of `stop`, and ends in front of it. An id beyond the
  // vocabulary, as a model may have, means nothing and is left out.
  bool add(std::int32_t id);

  // What has not been shown yet, valid until the next add(); where the text is `done`, all that is
  // left of it, be it the beginning of a character.
  std::string_view show(bool done);

  // The whole text, shown or not. Nothing may be called behind it.
  std::string take() { return std::move(text_); }

 private:
  bool has_text(std::int32_t id) const { return id < tokenizer_.vocab_size(); }

  const Tokenizer& tokenizer_;
  const std::vector<std::string>& stop_;
  std::string text_;
  std::size_t shown_ = 0;
  bool is_first_ = true;  // the text, with what it goes on from, has not begun
};

}  // namespace memphis
