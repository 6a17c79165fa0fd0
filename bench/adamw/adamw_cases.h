// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace memphis::bench {

struct AdamWCase {
  std::string name;
  std::int64_t num_parameters;
  std::int64_t step = 1;
  double clip_norm = 1.0;
  double norm = 4.0;
  double weight_decay = 0.1;
  bool in_place = false;  // param is master, where their dtypes agree
  bool tested = true;     // or only timed: too large for a test in f64
  bool timed = false;
};

inline std::vector<AdamWCase> adamw_cases() {
  return {
      {.name = "one", .num_parameters = 1},
      {.name = "odd", .num_parameters = 7, .step = 2},
      {.name = "tail", .num_parameters = 1001, .step = 1000},
      // The last quad of a thread's second four is a part.
      {.name = "second_tail", .num_parameters = 2048 + 1024 + 1001, .step = 4},
      {.name = "unclipped", .num_parameters = 64, .norm = 0.5, .weight_decay = 0.0},
      {.name = "no_clip", .num_parameters = 64, .step = 3, .clip_norm = 0.0, .norm = 1e6},
      {.name = "zero_norm", .num_parameters = 64, .norm = 0.0},
      {.name = "in_place", .num_parameters = 129, .step = 5, .in_place = true},
      {.name = "empty", .num_parameters = 0},
      {.name = "large", .num_parameters = 200000, .step = 10, .timed = true},
      {.name = "grok_1_shard", .num_parameters = 1 << 27, .tested = false, .timed = true},
  };
}

inline std::string shape_of(const AdamWCase& c) {
  return "n=" + std::to_string(c.num_parameters);
}

}  // namespace memphis::bench
