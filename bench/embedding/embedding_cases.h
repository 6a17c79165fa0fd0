// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace memphis::bench {

struct EmbeddingCase {
  std::string name;
  std::int64_t num_tokens;
  std::int64_t width;
  std::int64_t vocab_size;
  float multiplier = 1.0F;
  bool tested = true;  // or only timed: too large for a test in f64
  bool timed = false;
};

inline std::vector<EmbeddingCase> embedding_cases() {
  return {
      {.name = "one", .num_tokens = 1, .width = 1, .vocab_size = 1, .multiplier = 3.0F},
      {.name = "odd", .num_tokens = 13, .width = 5, .vocab_size = 7},
      {.name = "unaligned", .num_tokens = 600, .width = 130, .vocab_size = 50, .multiplier = 0.3F},
      {.name = "one_token", .num_tokens = 700, .width = 72, .vocab_size = 1, .multiplier = 0.7F},
      // Tokens behind those that the GPU takes four at a time.
      {.name = "tail", .num_tokens = 131, .width = 12, .vocab_size = 9},
      {.name = "empty", .num_tokens = 0, .width = 64, .vocab_size = 8},
      {.name = "grok_row", .num_tokens = 9, .width = 6144, .vocab_size = 4, .multiplier = 78.4F},
      // Rows that two blocks of the GPU share, with fewer columns than their threads could take.
      {.name = "shared_row", .num_tokens = 11, .width = 2060, .vocab_size = 3},
      {.name = "small_model",
       .num_tokens = 1024,
       .width = 256,
       .vocab_size = 256,
       .multiplier = 16.0F,
       .tested = false,
       .timed = true},
      {.name = "grok_1",
       .num_tokens = 8192,
       .width = 6144,
       .vocab_size = 131072,
       .multiplier = 78.38367F,
       .tested = false,
       .timed = true},
  };
}

inline std::string shape_of(const EmbeddingCase& c) {
  return "T=" + std::to_string(c.num_tokens) + " D=" + std::to_string(c.width) +
         " V=" + std::to_string(c.vocab_size);
}

}  // namespace memphis::bench
