// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace memphis::bench {

struct ExpertsCase {
  std::string name;
  std::vector<std::int64_t> counts;  // rows of each expert
  std::int64_t D;
  std::int64_t F;
  bool tested = true;  // the others are for the benchmark
  // Chosen for larger tiles than others have, and tested where these are: the CPU's, or those of
  // bf16 on a GPU of Hopper's kind.
  bool cpu_tiles = false;
  bool hopper_tiles = false;

  std::int64_t R() const { return std::accumulate(counts.begin(), counts.end(), std::int64_t{0}); }
  std::int64_t E() const { return static_cast<std::int64_t>(counts.size()); }
};

inline std::vector<ExpertsCase> experts_cases() {
  return {
      {.name = "one", .counts = {1}, .D = 8, .F = 8},
      {.name = "odd", .counts = {3, 1, 5}, .D = 7, .F = 9},
      {.name = "no_rows", .counts = {0, 0, 0}, .D = 16, .F = 8},
      {.name = "empty_experts", .counts = {0, 5, 0, 0, 9, 0}, .D = 24, .F = 16},
      {.name = "no_rows_of_one_expert", .counts = {0}, .D = 24, .F = 16},
      // Blocks of 128 rows and tasks of 512 exactly full, one over and one short.
      {.name = "block_edges",
       .counts = {128, 129, 127, 512, 513},
       .D = 40,
       .F = 24,
       .cpu_tiles = true},
      {.name = "all_on_one", .counts = {0, 1300, 0}, .D = 16, .F = 40, .cpu_tiles = true},
      {.name = "two_tiles", .counts = {130, 0, 3}, .D = 16, .F = 40},
      // Three tiles across, of gate and up and of their gradients.
      {.name = "three_across", .counts = {70, 0, 3}, .D = 16, .F = 520},
      // Nine tiles down, of which the last is halved by a GPU of Hopper's kind with 2, 4 or 8
      // multiprocessors, and all are where there are 18.
      {.name = "halved_tiles", .counts = {128, 1, 64, 65, 0, 127, 2, 129, 99}, .D = 24, .F = 40},
      // Several tiles of the GPU each way and more steps than its ring has stages; of the last tiles
      // parts.
      {.name = "several_steps",
       .counts = {70, 0, 130, 1},
       .D = 328,
       .F = 264,
       .hopper_tiles = true},
      {.name = "small_model",
       .counts = {1100, 700, 1300, 950, 1024, 1200, 818, 1100},
       .D = 128,
       .F = 344,
       .tested = false},
      // A rank of eight by tensor parallelism, with 8192 tokens: balanced, as Zipf would have it, and
      // all rows of one expert.
      {.name = "grok_eighth",
       .counts = {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
       .D = 6144,
       .F = 4096,
       .tested = false},
      {.name = "grok_eighth_zipf",
       .counts = {6031, 3014, 2009, 1507, 1205, 1004, 861, 753},
       .D = 6144,
       .F = 4096,
       .tested = false},
      {.name = "grok_eighth_one_hot",
       .counts = {0, 0, 0, 16384, 0, 0, 0, 0},
       .D = 6144,
       .F = 4096,
       .tested = false},
  };
}

}  // namespace memphis::bench
