// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

// What a step's time follows from beside the plan: rates, links, failures and power of the machines
// that a job would have. Files of them are in configs/machines.
namespace memphis {

// One of the links that a group of ranks may lie on.
struct LinkLevel {
  // Neighbouring ranks that it joins: those of a node, of a pod of nodes, of everything.
  std::int64_t ranks = 1;
  double latency_us = 0;  // of one message
  // Of each rank, in one direction. A gather or a sum over a group that has several ranks in each
  // node uses the links of all of them.
  double gb_per_second = 0;
  // The same where each rank sends something else to each of the others.
  double rows_gb_per_second = 0;
};

struct Machine {
  std::string name;
  double memory_gib = 0;  // that a rank may take

  // What the maker says, which MFU is counted of; 0: there are no such products.
  double peak_bf16_tflops = 0;
  double peak_fp8_tflops = 0;
  double peak_f32_tflops = 0;
  // What large products of random numbers reach when they are measured alone.
  double large_bf16_tflops = 0;
  double large_fp8_tflops = 0;
  double large_f32_tflops = 0;
  // A measured table, if there is one: products of so many GFLOP reach so many parts in a thousand
  // of what large ones do. Both lists ascend by size. Without one small products are as the model
  // says (csrc/plan/step_time.h).
  std::vector<std::int64_t> measured_gflop;
  std::vector<std::int64_t> measured_per_mille;
  // Multiprocessors, in whose rounds the tiles of a product are worked on; 0: of no kind.
  std::int64_t multiprocessors = 0;

  double memory_gb_per_second = 0;  // that the maker says
  double copy_share = 1;            // of it that a large copy reaches

  LinkLevel node;
  LinkLevel pod;
  LinkLevel cluster;

  double rank_hours_between_failures = 0;
  double restart_seconds = 0;     // from a failure to the first new step
  double save_gb_per_second = 0;  // of a rank, of what a save writes while training waits
  // Of a rank with its share of the node: at rest, and where all work is products at the large rate.
  double idle_watts = 0;
  double busy_watts = 0;

  double bytes_per_second() const { return memory_gb_per_second * copy_share * 1e9; }
  bool operator==(const Machine&) const = default;
};
inline bool operator==(const LinkLevel& a, const LinkLevel& b) {
  return a.ranks == b.ranks && a.latency_us == b.latency_us && a.gb_per_second == b.gb_per_second &&
         a.rows_gb_per_second == b.rows_gb_per_second;
}

// Reads as strictly as a config is read: every key once, no other key, every value in its range, and
// all of them there but the lists. ConfigError with the place, the value, why and what to do; `name`
// stands for the file.
Machine parse_machine(std::string_view text, std::string_view name);

// The file of a machine: `name_or_file` where it is a path or ends in .yaml, else
// <folder>/<name>.yaml of the first of `folders` that has it. ConfigError with the machines that
// there are, and the nearest.
std::filesystem::path find_machine(const std::string& name_or_file,
                                   const std::vector<std::filesystem::path>& folders);

Machine load_machine(const std::filesystem::path& file);

// What parse_machine reads as the same machine.
std::string to_yaml(const Machine& machine);

}  // namespace memphis
