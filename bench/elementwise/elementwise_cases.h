// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace memphis::bench {

struct ElementwiseCase {
  std::string name;
  std::int64_t num_rows;
  std::int64_t width;
  bool in_place = false;
  float scale = 1.0F;
  float cap = 0.0F;
  bool tested = true;  // or only timed: too large for a test in f64
  bool timed = false;
};

inline std::vector<ElementwiseCase> elementwise_cases() {
  return {
      {.name = "one", .num_rows = 1, .width = 1, .scale = 0.3F, .cap = 30.0F},
      {.name = "odd", .num_rows = 3, .width = 5, .scale = 2.0F},
      {.name = "tail", .num_rows = 7, .width = 1001, .scale = 5.0F, .cap = 3.0F},
      {.name = "in_place",
       .num_rows = 9,
       .width = 64,
       .in_place = true,
       .scale = 7.0F,
       .cap = 30.0F},
      {.name = "in_place_tail", .num_rows = 3, .width = 21, .in_place = true, .scale = 0.1F},
      {.name = "empty", .num_rows = 0, .width = 64, .cap = 30.0F},
      {.name = "two_pieces",
       .num_rows = 70,
       .width = 512,
       .scale = 4.0F,
       .cap = 50.0F,
       .timed = true},
      {.name = "grok_1",
       .num_rows = 8192,
       .width = 6144,
       .scale = 0.5F,
       .cap = 30.0F,
       .tested = false,
       .timed = true},
  };
}

inline std::string shape_of(const ElementwiseCase& c) {
  return "n=" + std::to_string(c.num_rows * c.width);
}

}  // namespace memphis::bench
