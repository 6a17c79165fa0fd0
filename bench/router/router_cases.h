// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/router/router.h"

namespace memphis::bench {

struct RouterCase {
  std::string name;
  std::int64_t num_sequences;
  std::int64_t sequence_length;
  std::int64_t width;
  std::int64_t num_experts;
  std::int64_t num_choices;  // experts of a token, K
  float cap = 0.0F;
  double mean = 0.0;        // of the logits
  bool masked = false;      // every third token is not valid, nor is the first sequence
  bool accumulate = false;  // backward
  std::int64_t num_partials = kernels::kRouterPartials;
  bool tested = true;    // or only timed: long in f64
  bool fits_cpu = true;  // timed there as well
  bool timed = false;

  std::int64_t num_tokens() const { return num_sequences * sequence_length; }
};

inline std::vector<RouterCase> router_cases() {
  return {
      {.name = "one",
       .num_sequences = 1,
       .sequence_length = 1,
       .width = 2,
       .num_experts = 2,
       .num_choices = 1},
      {.name = "odd",
       .num_sequences = 3,
       .sequence_length = 5,
       .width = 7,
       .num_experts = 5,
       .num_choices = 2,
       .num_partials = 4},
      {.name = "unaligned",
       .num_sequences = 2,
       .sequence_length = 11,
       .width = 131,
       .num_experts = 9,
       .num_choices = 3,
       .cap = 1.5F,
       .masked = true,
       .accumulate = true},
      {.name = "empty",
       .num_sequences = 2,
       .sequence_length = 0,
       .width = 64,
       .num_experts = 8,
       .num_choices = 2},
      {.name = "masked",
       .num_sequences = 4,
       .sequence_length = 17,
       .width = 64,
       .num_experts = 8,
       .num_choices = 2,
       .masked = true},
      // Sequences that can be cut in two and in four, with pieces of which no token is valid; so
      // many that the largest error of the naive results, which bounds this one's, is no luck.
      {.name = "pieces",
       .num_sequences = 60,
       .sequence_length = 4,
       .width = 24,
       .num_experts = 6,
       .num_choices = 2,
       .masked = true,
       .num_partials = 3},
      {.name = "capped_pieces",
       .num_sequences = 3,
       .sequence_length = 100,
       .width = 32,
       .num_experts = 8,
       .num_choices = 3,
       .cap = 2.0F,
       .accumulate = true,
       .num_partials = 9},
      {.name = "all_experts",
       .num_sequences = 1,
       .sequence_length = 9,
       .width = 32,
       .num_experts = 4,
       .num_choices = 4,
       .accumulate = true},
      {.name = "many_experts",
       .num_sequences = 2,
       .sequence_length = 30,
       .width = 64,
       .num_experts = 128,
       .num_choices = 6,
       .cap = 30.0F,
       .num_partials = 7},
      // exp of any logit underflows in f32: the softmax needs the row's own maximum.
      {.name = "far_below_0",
       .num_sequences = 1,
       .sequence_length = 5,
       .width = 16,
       .num_experts = 6,
       .num_choices = 2,
       .mean = -200.0},
      // A sequence of many more tokens than a warp.
      {.name = "many_tokens",
       .num_sequences = 1,
       .sequence_length = 1031,
       .width = 16,
       .num_experts = 8,
       .num_choices = 2,
       .num_partials = 20},
      // Columns of several blocks of the GPU, and of several of a block's steps.
      {.name = "long_rows",
       .num_sequences = 1,
       .sequence_length = 6,
       .width = 2056,
       .num_experts = 8,
       .num_choices = 2,
       .cap = 30.0F},
      {.name = "small_model",
       .num_sequences = 16,
       .sequence_length = 256,
       .width = 128,
       .num_experts = 8,
       .num_choices = 2,
       .tested = false,
       .timed = true},
      {.name = "grok_1",
       .num_sequences = 1,
       .sequence_length = 8192,
       .width = 6144,
       .num_experts = 8,
       .num_choices = 2,
       .accumulate = true,
       .tested = false,
       .fits_cpu = false,
       .timed = true},
  };
}

inline std::string shape_of(const RouterCase& c) {
  return "T=" + std::to_string(c.num_tokens()) + " D=" + std::to_string(c.width) +
         " E=" + std::to_string(c.num_experts) + " K=" + std::to_string(c.num_choices) +
         (c.cap > 0 ? " capped" : "");
}

}  // namespace memphis::bench
