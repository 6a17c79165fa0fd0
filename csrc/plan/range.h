// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

namespace memphis {

// Elements [begin, begin + count) of something.
struct Range {
  std::int64_t begin = 0;
  std::int64_t count = 0;

  std::int64_t end() const { return begin + count; }
  bool operator==(const Range&) const = default;
};

// What two ranges have in common; count 0 if it is nothing.
inline Range intersection(const Range& a, const Range& b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {.begin = begin, .count = std::max<std::int64_t>(std::min(a.end(), b.end()) - begin, 0)};
}

// One of `count` nearly equal pieces: piece i of n things is [n i / count, n (i + 1) / count).
struct Piece {
  std::int64_t index = 0;
  std::int64_t count = 1;

  Range of(std::int64_t n) const {
    const std::int64_t begin = n * index / count;
    return {.begin = begin, .count = n * (index + 1) / count - begin};
  }
};

}  // namespace memphis
