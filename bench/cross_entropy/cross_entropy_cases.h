// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace memphis::bench {

struct CrossEntropyCase {
  std::string name;
  std::int64_t num_tokens;
  std::int64_t vocab_size;
  float multiplier = 0.57735026F;
  float cap = 0.0F;
  double mean = 0.0;  // of the logits
  bool gradient = true;
  bool in_place = false;  // dlogits is logits
  bool tested = true;     // or only timed: long in f64
  bool fits_cpu = true;   // timed there as well
  bool timed = false;
};

inline std::vector<CrossEntropyCase> cross_entropy_cases() {
  return {
      {.name = "one", .num_tokens = 1, .vocab_size = 2},
      {.name = "odd", .num_tokens = 5, .vocab_size = 7, .cap = 3.0F},
      {.name = "unaligned", .num_tokens = 9, .vocab_size = 259, .in_place = true},
      {.name = "capped", .num_tokens = 6, .vocab_size = 512, .cap = 5.0F, .in_place = true},
      {.name = "only_loss", .num_tokens = 4, .vocab_size = 264, .gradient = false},
      {.name = "empty", .num_tokens = 0, .vocab_size = 64},
      {.name = "many_rows", .num_tokens = 300, .vocab_size = 64, .multiplier = 1.0F},
      // exp of any of them underflows in f32: the sum needs the row's own maximum.
      {.name = "far_below_0", .num_tokens = 3, .vocab_size = 9, .mean = -400.0},
      {.name = "long_rows", .num_tokens = 3, .vocab_size = 40000, .cap = 50.0F},
      // Most logits lie at the cap, and all; and one so wide that it leaves the sum no room without a
      // maximum. Their gradients are all but cancelled: what is left is rounding.
      {.name = "saturated",
       .num_tokens = 5,
       .vocab_size = 264,
       .multiplier = 40.0F,
       .cap = 30.0F,
       .gradient = false},
      {.name = "far_below_the_cap",
       .num_tokens = 5,
       .vocab_size = 264,
       .cap = 50.0F,
       .mean = -900.0,
       .gradient = false},
      {.name = "wide_cap",
       .num_tokens = 5,
       .vocab_size = 264,
       .multiplier = 60.0F,
       .cap = 200.0F,
       .gradient = false},
      // More than the shared memory of a GPU keeps of a row, in bf16 a little and in f32 by far.
      {.name = "longer_than_slots", .num_tokens = 1, .vocab_size = 118800, .in_place = true},
      {.name = "long_unaligned", .num_tokens = 2, .vocab_size = 33001},
      {.name = "small_model",
       .num_tokens = 4096,
       .vocab_size = 259,
       .tested = false,
       .timed = true},
      {.name = "grok_1",
       .num_tokens = 2048,
       .vocab_size = 131072,
       .in_place = true,
       .tested = false,
       .fits_cpu = false,
       .timed = true},
      {.name = "grok_2",
       .num_tokens = 2048,
       .vocab_size = 131072,
       .multiplier = 0.5F,
       .cap = 50.0F,
       .in_place = true,
       .tested = false,
       .fits_cpu = false,
       .timed = true},
  };
}

inline std::string shape_of(const CrossEntropyCase& c) {
  return "T=" + std::to_string(c.num_tokens) + " V=" + std::to_string(c.vocab_size) +
         (c.cap > 0 ? " capped" : "");
}

}  // namespace memphis::bench
