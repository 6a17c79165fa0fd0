// SPDX-License-Identifier: Apache-2.0
#include "bench/report.h"

#include <fmt/format.h>
#include <omp.h>

#include "csrc/core/json.h"

namespace memphis::bench {
namespace {

std::string columns(const OpBenchmark& c) {
  return fmt::format(
      "{:<24} {:<34} {:<5} {:<5}", c.op, c.shape, name_of(c.device), name_of(c.dtype));
}

nlohmann::json object_of(const OpBenchmark& c) {
  return {{"op", c.op},
          {"shape", c.shape},
          {"device", name_of(c.device)},
          {"dtype", name_of(c.dtype)},
          {"bytes", c.cost.bytes},
          {"flops", c.cost.flops}};
}

int num_units(Device device) {
  return device == Device::cpu ? omp_get_max_threads() : device_info(device).num_multiprocessors;
}

std::string matmul_name(Device device) {
  return device == Device::cpu ? fmt::format("OpenBLAS sgemm {}^3", kMatmulSizeCpu)
                               : fmt::format("cuBLASLt bf16 {}^3", kMatmulSizeGpu);
}

}  // namespace

void BenchmarkReport::machine(Device device, const Roofs& roofs) {
  if (json_) {
    machine_json(device, roofs);
    return;
  }
  const std::string matmul =
      roofs.matmul_flops_per_second > 0
          ? fmt::format(
                "; {} {:.3f} TFLOP/s", matmul_name(device), roofs.matmul_flops_per_second / 1e12)
          : "";
  line(fmt::format("{}: {} {}; copy {:.1f} GB/s{}",
                   device_info(device).name,
                   num_units(device),
                   device == Device::cpu ? "threads" : "SMs",
                   roofs.copy_bytes_per_second / 1e9,
                   matmul));
  line(fmt::format("median of {} to {} calls, caches cold; +- is one standard deviation",
                   kMinRepeats,
                   kMaxRepeats));
  line(fmt::format("{:<24} {:<34} {:<5} {:<5} {:>11} {:>6} {:>9} {:>8} {:>9} {:>9}",
                   "op",
                   "shape",
                   "dev",
                   "dtype",
                   "time us",
                   "+-",
                   "GB/s",
                   "of copy",
                   "TFLOP/s",
                   "of matmul"));
}

void BenchmarkReport::machine_json(Device device, const Roofs& roofs) {
  nlohmann::json object = {{"machine", device_info(device).name},
                           {"device", name_of(device)},
                           {"units", num_units(device)},
                           {"copy_bytes_per_second", roofs.copy_bytes_per_second}};
  if (roofs.matmul_flops_per_second > 0) {
    object["matmul"] = matmul_name(device);
    object["matmul_flops_per_second"] = roofs.matmul_flops_per_second;
  }
  line(object);
}

void BenchmarkReport::measured(const OpBenchmark& c,
                               const Measurement& measurement,
                               const Roofs& roofs) {
  if (json_) {
    measured_json(c, measurement, roofs);
    return;
  }
  const double bandwidth = c.cost.bytes / measurement.seconds;
  const double rate = c.cost.flops / measurement.seconds;
  const bool arithmetic = c.cost.flops > 0;
  line(fmt::format(
      "{} {:>11.1f} {:>5.1f}% {:>9.1f} {:>7.1f}% {:>9} {:>9}",
      columns(c),
      measurement.seconds * 1e6,
      measurement.relative_sigma * 100,
      bandwidth / 1e9,
      bandwidth / roofs.copy_bytes_per_second * 100,
      arithmetic ? fmt::format("{:.3f}", rate / 1e12) : "-",
      arithmetic ? fmt::format("{:.1f}%", rate / roofs.matmul_flops_per_second * 100) : "-"));
}

void BenchmarkReport::measured_json(const OpBenchmark& c,
                                    const Measurement& measurement,
                                    const Roofs& roofs) {
  nlohmann::json object = object_of(c);
  object["status"] = "measured";
  object["seconds"] = measurement.seconds;
  object["relative_sigma"] = measurement.relative_sigma;
  object["repeats"] = measurement.repeats;
  object["caches"] = "cold";
  object["bytes_per_second"] = c.cost.bytes / measurement.seconds;
  object["share_of_copy"] = c.cost.bytes / measurement.seconds / roofs.copy_bytes_per_second;
  if (c.cost.flops > 0) {
    object["flops_per_second"] = c.cost.flops / measurement.seconds;
    object["share_of_matmul"] = c.cost.flops / measurement.seconds / roofs.matmul_flops_per_second;
  }
  line(object);
}

void BenchmarkReport::not_measured(const OpBenchmark& c, const std::string& reason) {
  without_time(c, "not measured", reason);
}

void BenchmarkReport::failed(const OpBenchmark& c, const std::string& reason) {
  without_time(c, "failed", reason);
}

void BenchmarkReport::without_time(const OpBenchmark& c,
                                   const char* verdict,
                                   const std::string& reason) {
  if (json_) {
    nlohmann::json object = object_of(c);
    object["status"] = verdict;
    object["reason"] = reason;
    line(object);
  } else {
    line(fmt::format("{} {} ({})", columns(c), verdict, reason));
  }
}

void BenchmarkReport::line(const nlohmann::json& object) {
  line(object.dump());
}

void BenchmarkReport::line(const std::string& text) {
  out_ << text << std::endl;
}

}  // namespace memphis::bench
