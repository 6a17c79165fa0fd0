// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "csrc/config/config.h"

// What a run directory tells of its run, for whoever shows it.
namespace memphis {

// The numbers of a step, as metrics.jsonl has them.
enum class Column : std::uint8_t {
  loss,
  balance_loss,
  router_z_loss,
  grad_norm,
  learning_rate,
  expert_load_max,
  tokens,
  seconds,
  tokens_per_second,
  model_flops_per_second,
  data_seconds,
  model_seconds,
  optimizer_seconds,
  communication_seconds,
  exposed_seconds,
};
constexpr std::size_t kNumColumns = 15;
std::string_view key_of(Column column);

// Points of a line; y is not a number where there is none.
struct Points {
  std::vector<double> x;
  std::vector<double> y;
  bool empty() const { return x.empty(); }
  void add(double at, double value) {
    x.push_back(at);
    y.push_back(value);
  }
};

struct StartEvent {
  std::int64_t step = 0;
  std::string time;
  std::int64_t steps_again = 0;
  std::int64_t last_step = 0;
  std::string device;
  std::string layout;
  double parameters = 0;
  double model_flops_per_token = 0;
  double unhalved_flops_per_token = 0;
  double hardware_flops_per_token = 0;
  double peak_flops_per_second = 0;  // 0: not known
  std::vector<std::pair<std::string, double>> memory;
};

struct EndEvent {
  std::int64_t step = 0;
  std::string time;
  std::string reason;
  bool done = false;
};

struct RoutingLook {
  double step = 0;
  std::vector<std::vector<float>> load_LE;
  std::vector<float> effective_L;
  std::vector<float> entropy_L;
  std::vector<float> kept_L;
};

// A layer whose router collapsed, as the log warns of it.
struct Collapse {
  std::int64_t layer = 0;
  double from_step = 0;
  double to_step = -1;  // when it came back; -1: it has not
  double lowest = 0;    // effective experts
};

struct SampleText {
  std::int64_t step = 0;
  std::string text;
};

// Of a run whose ranks say how long each has worked.
struct SlowRank {
  std::int64_t rank = -1;
  std::int64_t looks = 0;  // in which it was the slowest, by a fifth or more
  std::int64_t of = 0;
  double worst = 1;  // times the median
  double worst_step = 0;
};

struct RunHistory {
  std::string name;
  bool alone = false;  // on its page, where its name need not stand everywhere
  std::filesystem::path dir;
  std::optional<Config> config;  // where config.yaml is there and understood
  std::string config_text;
  std::vector<double> steps;
  std::array<std::vector<double>, kNumColumns> columns;
  std::vector<double>
      clock;          // of each step's line, seconds since 1970; not a number where it has none
  Points validation;  // of the first set
  std::string validation_set;
  std::vector<std::pair<std::string, Points>> more_validation;  // of the others, by name
  Points accuracy;                                              // of questions
  Points gpu_watts;
  Points gpu_celsius;
  Points gpu_mhz;
  Points joules_per_token;
  double joules = 0;  // of all processes
  std::int64_t throttled_looks = 0;
  double throttled_step = 0;  // the first
  std::string throttled;      // "rank 3: heat"
  std::vector<SampleText> samples;
  // At most some thousand of all looks, evenly spread; collapses are of all of them.
  std::vector<RoutingLook> routing;
  std::vector<Collapse> collapses;
  std::vector<SlowRank> slow_ranks;  // the worst first
  std::vector<StartEvent> starts;
  std::vector<EndEvent> ends;
  std::int64_t damaged_lines = 0;
  std::int64_t first_damaged_line = 0;
  std::int64_t steps_again = 0;  // done twice or more
  bool repeated_in_file = false;
  std::string owner;  // the process that is at it: "process 4711 on node7"; empty: none

  const std::vector<double>& operator[](Column column) const {
    return columns[static_cast<std::size_t>(column)];
  }
  Points points(Column column) const { return {steps, (*this)[column]}; }
  std::int64_t last_step() const;  // that it is to reach; 0: not known
  const StartEvent* last_start() const { return starts.empty() ? nullptr : &starts.back(); }
};

// Reads metrics.jsonl line by line and config.yaml. A line that is no JSON object of a step is
// counted and passed over; a step that comes again takes the place of what was from there on.
//
// Errors      DataError where `dir` holds no metrics.jsonl.
RunHistory read_run(const std::filesystem::path& dir);

}  // namespace memphis
