// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/rmsnorm/rmsnorm.h"

namespace memphis::bench {

struct RmsNormCase {
  std::string name;
  std::int64_t num_tokens;
  std::int64_t width;
  bool residual = false;
  bool in_place = false;    // y is x; dx is dy
  bool accumulate = false;  // backward
  bool next = false;        // timed with the norm that follows
  std::int64_t num_partials = kernels::kRmsNormPartials;
  bool tested = true;  // or only timed: too large for a test in f64
  bool timed = false;
};

inline std::vector<RmsNormCase> rmsnorm_cases() {
  return {
      {.name = "one", .num_tokens = 1, .width = 1},
      {.name = "odd", .num_tokens = 3, .width = 5, .residual = true},
      {.name = "unaligned", .num_tokens = 7, .width = 1029, .accumulate = true},
      {.name = "unaligned_in_place", .num_tokens = 6, .width = 130, .in_place = true},
      {.name = "empty", .num_tokens = 0, .width = 64, .residual = true},
      {.name = "one_row", .num_tokens = 1, .width = 512, .in_place = true, .accumulate = true},
      {.name = "one_run", .num_tokens = 9, .width = 64, .num_partials = 1},
      // Runs of several rows in blocks of several warps, the last one short.
      {.name = "uneven_runs", .num_tokens = 10, .width = 520, .num_partials = 4},
      {.name = "many_rows", .num_tokens = 1000, .width = 64, .residual = true, .in_place = true},
      {.name = "grok_row", .num_tokens = 5, .width = 6144, .residual = true, .accumulate = true},
      // More than the registers of a block hold: in f32 forward, in both backward.
      {.name = "wide_row", .num_tokens = 3, .width = 16392, .residual = true, .accumulate = true},
      {.name = "small_model", .num_tokens = 1024, .width = 256, .tested = false, .timed = true},
      {.name = "grok_1", .num_tokens = 8192, .width = 6144, .tested = false, .timed = true},
      {.name = "grok_mini", .num_tokens = 8192, .width = 3072, .tested = false, .timed = true},
      {.name = "grok_1_residual",
       .num_tokens = 8192,
       .width = 6144,
       .residual = true,
       .accumulate = true,
       .tested = false,
       .timed = true},
      {.name = "grok_1_sandwich",
       .num_tokens = 8192,
       .width = 6144,
       .residual = true,
       .next = true,
       .tested = false,
       .timed = true},
  };
}

inline std::string shape_of(const RmsNormCase& c) {
  return "T=" + std::to_string(c.num_tokens) + " D=" + std::to_string(c.width) +
         (c.residual ? " residual" : "") + (c.next ? " next" : "");
}

}  // namespace memphis::bench
