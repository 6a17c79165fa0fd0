// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/filled_tensor.h"

namespace memphis::bench {

struct RopeCase {
  std::string name;
  std::int64_t T;
  std::int64_t C;
  std::int64_t rotated;
  std::int64_t H;
  std::int64_t S;  // rows of the table
  double theta = 10000.0;

  std::vector<double> x() const { return random_normal(T * C * H, "x " + name); }
  std::vector<double> positions() const { return random_integers(T, "position " + name, 0, S); }
};

inline std::vector<RopeCase> rope_cases() {
  return {
      {.name = "one", .T = 1, .C = 1, .rotated = 1, .H = 2, .S = 4},
      {.name = "no_tokens", .T = 0, .C = 3, .rotated = 2, .H = 8, .S = 4},
      {.name = "none_rotated", .T = 3, .C = 2, .rotated = 0, .H = 8, .S = 4},
      {.name = "odd_half", .T = 5, .C = 4, .rotated = 3, .H = 6, .S = 9},
      {.name = "small", .T = 70, .C = 8, .rotated = 6, .H = 32, .S = 256},
      {.name = "grok_1", .T = 9, .C = 64, .rotated = 56, .H = 128, .S = 8192},
      {.name = "grok_2", .T = 9, .C = 12, .rotated = 9, .H = 128, .S = 8192, .theta = 208533496.0},
  };
}

inline std::vector<RopeCase> rope_bench_cases() {
  return {
      {.name = "small", .T = 4096, .C = 8, .rotated = 6, .H = 32, .S = 256},
      {.name = "grok_1", .T = 8192, .C = 64, .rotated = 56, .H = 128, .S = 8192},
  };
}

}  // namespace memphis::bench
