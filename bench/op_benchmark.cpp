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

struct Outcome {
  int measured = 0;
  int failed = 0;
};

void run_on(Device device,
            const std::vector<const OpBenchmark*>& cases,
            BenchmarkReport& report,
            Outcome& outcome) {
  BenchmarkTimer timer(device);
  const bool arithmetic =
      std::any_of(cases.begin(), cases.end(), [](const auto* c) { return c->cost.flops > 0; });
  const Roofs roofs = measure_roofs(timer, arithmetic);
  report.machine(device, roofs);
  const bool simulated = device == Device::cuda && device_info(device).simulated;
  for (const OpBenchmark* c : cases) {
    if (simulated && (c->cost.flops > kMaxSimulatedFlops || c->cost.bytes > kMaxSimulatedBytes)) {
      report.not_measured(*c, "too large for the simulated device");
      continue;
    }
    try {
      report.measured(*c, timer.measure(c->setup()), roofs);
      ++outcome.measured;
    } catch (const PreflightError& error) {  // not enough memory, say: another machine may run it
      report.not_measured(*c, error.what());
    } catch (const std::exception& error) {
      report.failed(*c, error.what());
      ++outcome.failed;
    }
  }
}

// The devices of this machine that `device` names. An absent one is refused where it is asked for by
// its name, and otherwise passed over.
std::vector<Device> devices_of(std::string_view device) {
  if (device == "all") {
    std::vector<Device> devices = {Device::cpu};
    if (device_available(Device::cuda)) {
      devices.push_back(Device::cuda);
    }
    return devices;
  }
  if (device == name_of(Device::cpu)) {
    return {Device::cpu};
  }
  if (device != name_of(Device::cuda)) {
    throw ConfigError(fmt::format(
        "--device {} is not a device (a case runs on one of two); use cpu, cuda or all", device));
  }
  if (!device_available(Device::cuda)) {
    throw PreflightError(fmt::format(
        "--device cuda, and no GPU can be used ({}); use cpu, or all for what this machine has",
        device_unavailable_reason()));
  }
  return {Device::cuda};
}

}  // namespace

void register_op_benchmark(OpBenchmark benchmark) {
  registry().push_back(std::move(benchmark));
}

void run_op_benchmarks(std::string_view filter,
                       std::string_view device,
                       bool json,
                       std::ostream& out) {
  const std::vector<Device> devices = devices_of(device);
  std::vector<const OpBenchmark*> selected;
  std::set<std::string> ops;
  for (const OpBenchmark& c : registry()) {
    ops.insert(c.op);
    if (c.op.starts_with(filter) &&
        std::find(devices.begin(), devices.end(), c.device) != devices.end()) {
      selected.push_back(&c);
    }
  }
  if (selected.empty()) {
    throw ConfigError(fmt::format("no op begins with \"{}\" (nothing to measure); the ops are {}",
                                  filter,
                                  fmt::join(ops, ", ")));
  }
  std::stable_sort(selected.begin(), selected.end(), [](const auto* a, const auto* b) {
    return a->op < b->op;  // registration runs in the linker's order
  });

  BenchmarkReport report(json, out);
  Outcome outcome;
  for (const Device each : devices) {
    std::vector<const OpBenchmark*> cases;
    std::copy_if(selected.begin(), selected.end(), std::back_inserter(cases), [&](const auto* c) {
      return c->device == each;
    });
    if (!cases.empty()) {
      run_on(each, cases, report, outcome);
    }
  }
  if (outcome.failed > 0) {
    throw Error(ExitCode::internal,
                fmt::format("{} of {} benchmarks failed (the line of each says why); run the op's "
                            "tests on this machine",
                            outcome.failed,
                            selected.size()));
  }
  if (outcome.measured == 0) {
    throw PreflightError(fmt::format(
        "none of {} benchmarks could be measured on this machine (the line of each says "
        "why); run them on a larger one, or others by --filter",
        selected.size()));
  }
}

}  // namespace memphis::bench
