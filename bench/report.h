// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ostream>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "bench/op_benchmark.h"
#include "bench/timer.h"
#include "csrc/core/device.h"

namespace memphis::bench {

// What `memphis bench kernels` prints: a table, or one JSON object a line. Each line is flushed,
// because a case may take seconds and somebody is watching.
class BenchmarkReport {
 public:
  BenchmarkReport(bool json, std::ostream& out) : json_(json), out_(out) {}

  // The machine and its roofs: the head of the table of one device.
  void machine(Device device, const Roofs& roofs);
  void measured(const OpBenchmark& c, const Measurement& measurement, const Roofs& roofs);
  void not_measured(const OpBenchmark& c, const std::string& reason);
  void failed(const OpBenchmark& c, const std::string& reason);

 private:
  void machine_json(Device device, const Roofs& roofs);
  void measured_json(const OpBenchmark& c, const Measurement& measurement, const Roofs& roofs);
  void without_time(const OpBenchmark& c, const char* verdict, const std::string& reason);
  void line(const nlohmann::json& object);
  void line(const std::string& text);

  bool json_;
  std::ostream& out_;
};

}  // namespace memphis::bench
