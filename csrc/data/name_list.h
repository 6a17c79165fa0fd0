// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace memphis {

// "a, b and 3 more": so many of a list as a line can name, the rest counted.
template <class Item, class Describe>
std::string list_of(const std::vector<Item>& items, const Describe& describe) {
  constexpr std::size_t kMaxNamed = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(items.size(), kMaxNamed); ++i) {
    text += (i == 0 ? "" : ", ") + describe(items[i]);
  }
  if (items.size() > kMaxNamed) {
    text += " and " + std::to_string(items.size() - kMaxNamed) + " more";
  }
  return text;
}

inline std::string list_of(const std::vector<std::filesystem::path>& paths) {
  return list_of(paths, [](const std::filesystem::path& path) { return path.string(); });
}

inline std::string list_of(const std::vector<std::string>& texts) {
  return list_of(texts, [](const std::string& text) { return text; });
}

}  // namespace memphis
