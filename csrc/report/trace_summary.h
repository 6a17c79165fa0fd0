// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace memphis {

// What the files of metrics.trace add up to.
struct TraceSummary {
  std::int64_t num_ranks = 0;
  std::map<std::string, double> seconds_of_action;   // of all ranks, by phase of a step
  std::map<std::string, double> seconds_of_waiting;  // by collective
  std::vector<double> worked_seconds;                // of each rank: phases, less its waiting
  std::vector<double> waited_seconds;
  bool empty() const { return num_ranks == 0; }
};

// Of rank-*.json in `dir`, as csrc/train/trace_file.h writes them; empty where there are none. Lines
// that are damaged are passed over.
TraceSummary summarize_traces(const std::filesystem::path& dir);

}  // namespace memphis
