// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace memphis::bench {

struct GegluCase {
  std::string name;
  std::int64_t num_tokens;
  std::int64_t num_choices;  // rows of a token, K
  std::int64_t width;
  bool gated = true;
  bool in_place = false;  // dgate_up is gate_up
  bool tested = true;     // or only timed: long in f64
  bool fits_cpu = true;   // timed there as well
  bool timed = false;

  std::int64_t num_rows() const { return num_tokens * num_choices; }
};

inline std::vector<GegluCase> geglu_cases() {
  return {
      {.name = "one", .num_tokens = 1, .num_choices = 1, .width = 1},
      {.name = "odd", .num_tokens = 3, .num_choices = 1, .width = 5},
      {.name = "unaligned", .num_tokens = 7, .num_choices = 3, .width = 301, .in_place = true},
      {.name = "dense", .num_tokens = 9, .num_choices = 1, .width = 344, .gated = false},
      {.name = "dense_in_place",
       .num_tokens = 5,
       .num_choices = 1,
       .width = 40,
       .gated = false,
       .in_place = true},
      {.name = "no_tokens", .num_tokens = 0, .num_choices = 2, .width = 64},
      {.name = "no_columns", .num_tokens = 4, .num_choices = 2, .width = 0},
      {.name = "many_rows", .num_tokens = 500, .num_choices = 2, .width = 64},
      {.name = "long_rows", .num_tokens = 2, .num_choices = 2, .width = 4608},
      {.name = "small_model",
       .num_tokens = 4096,
       .num_choices = 2,
       .width = 344,
       .tested = false,
       .timed = true},
      {.name = "grok_1",
       .num_tokens = 2048,
       .num_choices = 2,
       .width = 32768,
       .tested = false,
       .fits_cpu = false,
       .timed = true},
  };
}

inline std::string shape_of(const GegluCase& c) {
  return "R=" + std::to_string(c.num_rows()) + " F=" + std::to_string(c.width) +
         (c.gated ? " gated" : "");
}

}  // namespace memphis::bench
