// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace memphis::bench {

struct GroupedMatmulCase {
  std::string name;
  std::vector<std::int64_t> counts;  // rows of each expert
  std::int64_t N;
  std::int64_t K;
  bool tested = true;  // small enough for naive loops; the others are for the benchmark
  // Chosen for larger tiles than others have, and tested where these are: the CPU's, or those of
  // bf16 on a GPU of Hopper's kind.
  bool cpu_tiles = false;
  bool hopper_tiles = false;

  std::int64_t R() const { return std::accumulate(counts.begin(), counts.end(), std::int64_t{0}); }
  std::int64_t E() const { return static_cast<std::int64_t>(counts.size()); }
};

// Widths that are no multiple of 8 are refused by the GPU in bf16.
inline bool fits_tensor_cores(const GroupedMatmulCase& c) {
  return c.N % 8 == 0 && c.K % 8 == 0;
}

inline std::vector<GroupedMatmulCase> grouped_matmul_cases() {
  return {
      {.name = "one", .counts = {1}, .N = 1, .K = 1},
      {.name = "odd", .counts = {3, 1, 5}, .N = 7, .K = 9},
      {.name = "no_rows", .counts = {0, 0, 0}, .N = 16, .K = 8},
      {.name = "empty_experts", .counts = {0, 5, 0, 0, 9, 0}, .N = 24, .K = 16},
      {.name = "no_rows_of_one_expert", .counts = {0}, .N = 24, .K = 16},
      {.name = "all_on_one", .counts = {0, 0, 300, 0}, .N = 40, .K = 24},
      // Tiles of 128 exactly full, one over and one short, in rows; one over in the width.
      {.name = "tile_edges", .counts = {128, 129, 127}, .N = 136, .K = 40},
      // Nine tiles down, of which the last is halved by a GPU of Hopper's kind with 2, 4 or 8
      // multiprocessors, and all are where there are 18.
      {.name = "halved_tiles", .counts = {128, 1, 64, 65, 0, 127, 2, 129, 99}, .N = 24, .K = 40},
      // More than one tile of the GPU down and across in dweight.
      {.name = "tiles_both_ways", .counts = {5, 0, 2}, .N = 136, .K = 136},
      // More steps than the GPU's ring has stages, whole and parts, and several tiles both ways.
      {.name = "several_steps",
       .counts = {70, 0, 200, 1},
       .N = 264,
       .K = 328,
       .hopper_tiles = true},
      // Three tiles of a GPU of Hopper's kind across, of which two blocks take the last together.
      {.name = "three_across", .counts = {70, 0, 3}, .N = 520, .K = 24},
      {.name = "three_across_of_k", .counts = {3, 130}, .N = 24, .K = 520},
      // More than one tile of the CPU down and across, in y and in dweight.
      {.name = "wide_rows", .counts = {800, 8}, .N = 1160, .K = 24, .cpu_tiles = true},
      {.name = "wide_weights", .counts = {6, 3}, .N = 584, .K = 600, .cpu_tiles = true},
      {.name = "small_model_gate_up",
       .counts = {1100, 700, 1300, 950, 1024, 1200, 818, 1100},
       .N = 688,
       .K = 128,
       .tested = false},
      {.name = "small_model_down",
       .counts = {1100, 700, 1300, 950, 1024, 1200, 818, 1100},
       .N = 128,
       .K = 344,
       .tested = false},
      {.name = "grok_gate_up_quarter",  // expert tensor parallelism of 4
       .counts = {2200, 1400, 2600, 1900, 2048, 2400, 1636, 2200},
       .N = 16384,
       .K = 6144,
       .tested = false},
      // A rank of eight by tensor parallelism, with 8192 tokens: balanced, as Zipf would have it, and
      // all rows of one expert.
      {.name = "grok_gate_up_eighth",
       .counts = {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
       .N = 8192,
       .K = 6144,
       .tested = false},
      {.name = "grok_down_eighth",
       .counts = {2048, 2048, 2048, 2048, 2048, 2048, 2048, 2048},
       .N = 6144,
       .K = 4096,
       .tested = false},
      {.name = "grok_gate_up_eighth_zipf",
       .counts = {6031, 3014, 2009, 1507, 1205, 1004, 861, 753},
       .N = 8192,
       .K = 6144,
       .tested = false},
      {.name = "grok_gate_up_eighth_one_hot",
       .counts = {0, 0, 0, 16384, 0, 0, 0, 0},
       .N = 8192,
       .K = 6144,
       .tested = false},
      {.name = "grok_down_quarter",
       .counts = {2200, 1400, 2600, 1900, 2048, 2400, 1636, 2200},
       .N = 6144,
       .K = 8192,
       .tested = false},
  };
}

}  // namespace memphis::bench
