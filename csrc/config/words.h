// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace memphis {

// The one of `candidates` that was probably meant by `word`: what another program calls so, as `gpu`
// for cuda and `lr` for learning_rate, or else the nearest by edit distance; empty if none is near. A
// neighbouring pair of letters that changed places counts as one edit.
std::string_view nearest_word(std::string_view word,
                              const std::vector<std::string_view>& candidates);

// "a, b or c", with `last` for "or".
std::string join_words(const std::vector<std::string_view>& words, std::string_view last);

// In double quotes, with escapes, as YAML and JSON both read it.
std::string quote(std::string_view text);

}  // namespace memphis
