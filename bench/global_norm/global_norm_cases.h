// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/global_norm/global_norm.h"

namespace memphis::bench {

struct GlobalNormCase {
  std::string name;
  std::int64_t num_elements;
  std::int64_t num_partials = kernels::kGlobalNormPartials;
  bool accumulate = false;  // of sum_all
  bool tested = true;       // or only timed: too large for a test in f64
  bool timed = false;
};

inline std::vector<GlobalNormCase> global_norm_cases() {
  return {
      {.name = "one", .num_elements = 1, .num_partials = 2},
      {.name = "odd", .num_elements = 37, .num_partials = 3, .accumulate = true},
      {.name = "one_run", .num_elements = 1001, .num_partials = 1},
      {.name = "fewer_than_runs", .num_elements = 1055, .accumulate = true},
      {.name = "short_last_run", .num_elements = 3075},
      {.name = "empty", .num_elements = 0, .num_partials = 3, .accumulate = true},
      // Several vectors a thread, in runs and in the sum; the elements that are no whole vector lie
      // where a thread's second load would be.
      {.name = "long_runs", .num_elements = 40003, .num_partials = 7},
      {.name = "large", .num_elements = 1 << 20, .tested = false, .timed = true},
      {.name = "grok_1_shard", .num_elements = 1 << 28, .tested = false, .timed = true},
  };
}

inline std::string shape_of(const GlobalNormCase& c) {
  return "n=" + std::to_string(c.num_elements);
}

}  // namespace memphis::bench
