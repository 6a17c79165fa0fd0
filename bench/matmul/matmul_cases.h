// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace memphis::bench {

struct MatmulCase {
  std::string name;
  std::int64_t T;
  std::int64_t N;
  std::int64_t K;
  bool tested = true;  // small enough for naive loops; the others are for the benchmark
};

inline std::vector<MatmulCase> matmul_cases() {
  return {
      {.name = "one", .T = 1, .N = 1, .K = 1},
      {.name = "odd", .T = 3, .N = 5, .K = 7},
      {.name = "no_tokens", .T = 0, .N = 16, .K = 8},
      {.name = "byte_vocabulary", .T = 33, .N = 259, .K = 16},
      // More than one tile of the CPU, the last one short: down; across, and both ways in dweight.
      {.name = "many_rows", .T = 1100, .N = 24, .K = 40},
      {.name = "many_columns", .T = 20, .N = 1160, .K = 584},
      // More than one block of widened operands in each direction.
      {.name = "blocks", .T = 300, .N = 264, .K = 272},
      {.name = "small_model_qkv", .T = 4096, .N = 256, .K = 128, .tested = false},
      {.name = "small_model_output", .T = 4096, .N = 128, .K = 128, .tested = false},
      {.name = "small_model_logits", .T = 4096, .N = 259, .K = 128, .tested = false},
      {.name = "grok_qkv", .T = 8192, .N = 8192, .K = 6144, .tested = false},
      {.name = "grok_output", .T = 8192, .N = 6144, .K = 6144, .tested = false},
      {.name = "grok_logits", .T = 2048, .N = 131072, .K = 6144, .tested = false},
  };
}

}  // namespace memphis::bench
