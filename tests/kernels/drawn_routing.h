// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "tests/support/draw.h"

// Experts of numbers and widths that no table lists, and how the rows fall to them.
namespace memphis::test {

// A multiple of 8, which tensor cores take.
inline std::int64_t drawn_width(Draw& draw) {
  return 8 * draw.integer_or_edge(1, 70, {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65});
}

// Up to `most` in all. Edges are those of tiles of 128 rows and of their halves.
inline std::vector<std::int64_t> drawn_counts(Draw& draw, std::int64_t most) {
  const std::int64_t num_experts = draw.integer(1, 11);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(num_experts));
  const auto left = [&] { return most - std::accumulate(counts.begin(), counts.end(), 0L); };
  switch (draw.integer(0, 3)) {
    case 0:  // one hot
      counts[static_cast<std::size_t>(draw.integer(0, num_experts - 1))] = draw.integer(1, most);
      break;
    case 1:  // as Zipf would have it, in any order
      for (std::int64_t e = 0; e < num_experts; ++e) {
        counts[static_cast<std::size_t>(e)] = std::min(left(), most / (2 * (e + 1)));
      }
      for (std::size_t e = 1; e < counts.size(); ++e) {
        std::swap(counts[e],
                  counts[static_cast<std::size_t>(draw.integer(0, static_cast<std::int64_t>(e)))]);
      }
      break;
    default:
      for (std::int64_t& count : counts) {
        count = std::min(left(), draw.integer_or_edge(0, 150, {0, 1, 63, 64, 65, 127, 128, 129}));
      }
  }
  return counts;
}

// Three cases for the tests of `op`, with as many rows as naive loops have time for. A test that fails
// speaks of "drawn_2_rows_0_128_17_widths_264_40".
template <class Case>
std::vector<Case> drawn_cases(const std::string& op,
                              std::int64_t Case::*first_width,
                              std::int64_t Case::*second_width) {
  constexpr std::int64_t kProducts = std::int64_t{5} << 20;
  constexpr std::int64_t kFewestRows = 40;
  constexpr std::int64_t kMostRows = 700;
  std::vector<Case> cases;
  for (int i = 0; i < 3; ++i) {
    Draw draw("drawn " + op + " " + std::to_string(i));
    Case& drawn = cases.emplace_back();
    const std::int64_t first = drawn.*first_width = drawn_width(draw);
    const std::int64_t second = drawn.*second_width = drawn_width(draw);
    drawn.counts =
        drawn_counts(draw, std::clamp(kProducts / (first * second), kFewestRows, kMostRows));
    drawn.name = "drawn_" + std::to_string(i) + "_rows";
    for (const std::int64_t count : drawn.counts) {
      drawn.name += "_" + std::to_string(count);
    }
    drawn.name += "_widths_" + std::to_string(first) + "_" + std::to_string(second);
  }
  return cases;
}

}  // namespace memphis::test
