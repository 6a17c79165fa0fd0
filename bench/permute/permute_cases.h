// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace memphis::bench {

struct PermuteCase {
  std::string name;
  std::int64_t num_tokens;
  std::int64_t num_experts;
  std::int64_t num_choices;  // experts of a token, K
  std::int64_t width;
  float scale = 1.0F;
  std::int64_t only_expert = -1;  // all rows go to it
  bool tested = true;             // or only timed: long in f64
  bool fits_cpu = true;           // timed there as well
  bool timed = false;

  std::int64_t num_rows() const { return num_tokens * num_choices; }
};

inline std::vector<PermuteCase> permute_cases() {
  return {
      {.name = "one", .num_tokens = 1, .num_experts = 1, .num_choices = 1, .width = 1},
      {.name = "odd", .num_tokens = 3, .num_experts = 5, .num_choices = 2, .width = 7},
      {.name = "unaligned",
       .num_tokens = 45,
       .num_experts = 3,
       .num_choices = 3,
       .width = 131,
       .scale = 0.7071F},
      {.name = "one_choice", .num_tokens = 200, .num_experts = 8, .num_choices = 1, .width = 24},
      {.name = "empty", .num_tokens = 0, .num_experts = 8, .num_choices = 2, .width = 64},
      // Gates that travel with their rows, and a rank at which no row arrives.
      {.name = "gates", .num_tokens = 333, .num_experts = 8, .num_choices = 1, .width = 1},
      {.name = "no_arrivals", .num_tokens = 0, .num_experts = 4, .num_choices = 1, .width = 24},
      {.name = "no_gates", .num_tokens = 0, .num_experts = 4, .num_choices = 1, .width = 1},
      {.name = "no_columns", .num_tokens = 4, .num_experts = 8, .num_choices = 2, .width = 0},
      {.name = "one_expert",
       .num_tokens = 150,
       .num_experts = 4,
       .num_choices = 1,
       .width = 8,
       .only_expert = 2},
      {.name = "many_experts",
       .num_tokens = 300,
       .num_experts = 1024,
       .num_choices = 2,
       .width = 16},
      // Chunks of more assignments than the GPU's block for them has threads.
      {.name = "long_chunks", .num_tokens = 4130, .num_experts = 16, .num_choices = 8, .width = 8},
      // Rows that several of the GPU's blocks share, the last of which has fewer vectors.
      {.name = "long_rows",
       .num_tokens = 5,
       .num_experts = 8,
       .num_choices = 2,
       .width = 2104,
       .scale = 0.7071F},
      {.name = "three_choices", .num_tokens = 70, .num_experts = 8, .num_choices = 3, .width = 48},
      {.name = "four_choices",
       .num_tokens = 70,
       .num_experts = 8,
       .num_choices = 4,
       .width = 48,
       .scale = 0.7071F},
      {.name = "small_model",
       .num_tokens = 4096,
       .num_experts = 8,
       .num_choices = 2,
       .width = 128,
       .tested = false,
       .timed = true},
      {.name = "grok_1",
       .num_tokens = 8192,
       .num_experts = 8,
       .num_choices = 2,
       .width = 6144,
       .tested = false,
       .fits_cpu = false,
       .timed = true},
  };
}

inline std::string shape_of(const PermuteCase& c) {
  return "T=" + std::to_string(c.num_tokens) + " K=" + std::to_string(c.num_choices) +
         " E=" + std::to_string(c.num_experts) + " D=" + std::to_string(c.width);
}

struct ChoicesCase {
  std::string name;
  std::int64_t num_tokens;
  std::int64_t num_choices;  // experts of a token, K
  std::int64_t num_experts;
  std::int64_t copies;
  std::int64_t experts_per_rank;
  bool tested = true;
};

inline std::vector<ChoicesCase> choices_cases() {
  return {
      {.name = "one",
       .num_tokens = 1,
       .num_choices = 1,
       .num_experts = 1,
       .copies = 1,
       .experts_per_rank = 1},
      {.name = "empty",
       .num_tokens = 0,
       .num_choices = 2,
       .num_experts = 8,
       .copies = 2,
       .experts_per_rank = 4},
      {.name = "one_copy",
       .num_tokens = 37,
       .num_choices = 2,
       .num_experts = 8,
       .copies = 1,
       .experts_per_rank = 4},
      {.name = "one_expert_a_rank",
       .num_tokens = 50,
       .num_choices = 2,
       .num_experts = 8,
       .copies = 4,
       .experts_per_rank = 1},
      {.name = "all_experts_on_a_rank",
       .num_tokens = 50,
       .num_choices = 3,
       .num_experts = 6,
       .copies = 2,
       .experts_per_rank = 6},
      // More than one block of the GPU both ways.
      {.name = "odd",
       .num_tokens = 301,
       .num_choices = 3,
       .num_experts = 15,
       .copies = 3,
       .experts_per_rank = 5},
  };
}

struct ArrivalCase {
  std::string name;
  std::int64_t num_senders;
  std::int64_t num_experts;  // of a rank
  std::int64_t rank;
  std::int64_t most_rows;           // of a sender for an expert; 0: none arrive
  std::int64_t only_sender = -1;    // the others send nothing to this rank
  std::int64_t only_expert = -1;    // of this rank, for which rows arrive
  std::int64_t missing_places = 0;  // rows without one
  bool tested = true;
};

inline std::vector<ArrivalCase> arrival_cases() {
  return {
      {.name = "one", .num_senders = 1, .num_experts = 1, .rank = 0, .most_rows = 3},
      {.name = "none", .num_senders = 3, .num_experts = 2, .rank = 1, .most_rows = 0},
      {.name = "first_rank", .num_senders = 4, .num_experts = 2, .rank = 0, .most_rows = 9},
      {.name = "last_rank", .num_senders = 4, .num_experts = 2, .rank = 3, .most_rows = 9},
      {.name = "one_expert_a_rank", .num_senders = 8, .num_experts = 1, .rank = 5, .most_rows = 40},
      {.name = "one_rank", .num_senders = 1, .num_experts = 8, .rank = 0, .most_rows = 50},
      // A sender's rows for an expert are more than the threads of the GPU's block for them.
      {.name = "long", .num_senders = 3, .num_experts = 3, .rank = 1, .most_rows = 500},
      // More senders than lanes of a warp.
      {.name = "many_senders", .num_senders = 70, .num_experts = 3, .rank = 41, .most_rows = 12},
      {.name = "one_sender",
       .num_senders = 5,
       .num_experts = 4,
       .rank = 2,
       .most_rows = 30,
       .only_sender = 3},
      {.name = "one_expert",
       .num_senders = 5,
       .num_experts = 4,
       .rank = 4,
       .most_rows = 30,
       .only_expert = 2},
      // Of rows that arrive early some belong behind the room, and some that arrive late within it.
      {.name = "no_room",
       .num_senders = 4,
       .num_experts = 3,
       .rank = 2,
       .most_rows = 200,
       .missing_places = 300},
  };
}

}  // namespace memphis::bench
