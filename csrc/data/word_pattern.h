// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace memphis {

// A regular expression that cuts text into words before they are encoded, by PCRE2 in UTF-8 with
// Unicode's properties. `\s` and `\S` mean Unicode's White_Space, as for the engines that tokenizers
// are made with, and not what Perl adds to it.
//
// DataError, with the place, where it is none.
class WordPattern {
 public:
  explicit WordPattern(std::string_view pattern);
  ~WordPattern();
  WordPattern(WordPattern&& other) noexcept;
  WordPattern& operator=(WordPattern&& other) noexcept;
  WordPattern(const WordPattern&) = delete;
  WordPattern& operator=(const WordPattern&) = delete;

  struct Match {
    std::size_t begin;
    std::size_t end;  // equal to begin where nothing matches any more
  };
  // The first match that is not empty from byte `from` of `text` on, which is UTF-8. Any number of
  // threads may ask.
  Match find(std::string_view text, std::size_t from) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace memphis
