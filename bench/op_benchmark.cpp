// SPDX-License-Identifier: Apache-2.0
#include "bench/op_benchmark.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "bench/report.h"
#include "bench/run_op_benchmarks.h"
#include "bench/timer.h"
#include "csrc/core/error.h"

namespace memphis::bench {
namespace {

std::vector<OpBenchmark>& registry() {
  static std::vector<OpBenchmark> benchmarks;  // not a global: registration runs before main
  return benchmarks;
}

// True unless a case failed.
bool run_on(Device device, const std::vector<const OpBenchmark*>& cases, BenchmarkReport& report) {
  if (!device_available(device)) {
    for (const OpBenchmark* c : cases) {
      report.not_measured(*c, device_unavailable_reason());
    }
    return true;
  }
  BenchmarkTimer timer(device);
  const bool arithmetic =
      std::any_of(cases.begin(), cases.end(), [](const auto* c) { return c->cost.flops > 0; });
  const Roofs roofs = measure_roofs(timer, arithmetic);
  report.machine(device, roofs);
  bool good = true;
  for (const OpBenchmark* c : cases) {
    try {
      report.measured(*c, timer.measure(c->setup()), roofs);
    } catch (const PreflightError& error) {  // not enough memory, say: another machine may run it
      report.not_measured(*c, error.what());
    } catch (const std::exception& error) {
      report.failed(*c, error.what());
      good = false;
    }
  }
  return good;
}

}  // namespace

void register_op_benchmark(OpBenchmark benchmark) {
  registry().push_back(std::move(benchmark));
}

int run_op_benchmarks(std::string_view filter,
                      std::string_view device,
                      bool json,
                      std::ostream& out) {
  if (device != "cpu" && device != "cuda" && device != "all") {
    throw ConfigError(fmt::format(
        "--device {} is not a device (a case runs on one of two); use cpu, cuda or all", device));
  }
  std::vector<const OpBenchmark*> selected;
  std::set<std::string> ops;
  for (const OpBenchmark& c : registry()) {
    ops.insert(c.op);
    if (c.op.starts_with(filter) && (device == "all" || device == name_of(c.device))) {
      selected.push_back(&c);
    }
  }
  if (selected.empty()) {
    throw ConfigError(
        fmt::format("no benchmark's op starts with \"{}\" on device {} (nothing to measure); the "
                    "ops are {}",
                    filter,
                    device,
                    fmt::join(ops, ", ")));
  }
  std::stable_sort(selected.begin(), selected.end(), [](const auto* a, const auto* b) {
    return a->op < b->op;  // registration runs in the linker's order
  });

  BenchmarkReport report(json, out);
  bool good = true;
  for (const Device each : {Device::cpu, Device::cuda}) {
    std::vector<const OpBenchmark*> cases;
    std::copy_if(selected.begin(), selected.end(), std::back_inserter(cases), [&](const auto* c) {
      return c->device == each;
    });
    if (!cases.empty()) {
      good = run_on(each, cases, report) && good;
    }
  }
  return good ? 0 : 1;
}

}  // namespace memphis::bench
