// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "bench/run_op_benchmarks.h"
#include "bench/timer.h"
#include "csrc/cli/commands.h"
#include "csrc/cli/source_tree.h"
#include "csrc/cli/threads.h"
#include "csrc/comm/job.h"
#include "csrc/core/error.h"
#include "csrc/core/json.h"
#include "csrc/core/parallel.h"
#include "csrc/plan/flops.h"
#include "csrc/train/trainer.h"
#include "kernels/cpu/openblas.h"

namespace memphis {
namespace {

constexpr int kWarmupSteps = 3;
constexpr std::int64_t kMatmulSize = 1024;
constexpr int kMatmulRepeats = 20;

struct StepArguments {
  ConfigArguments config;
  std::int64_t steps = 12;
  bool json = false;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// What a dense product reaches on this device: OpenBLAS's sgemm on as many threads as the steps
// have, or cuBLASLt in bf16.
double matmul_flops_per_second(Device device) {
  if (device == Device::cpu) {
    return kernels::cpu::measure_openblas_sgemm(kMatmulSize, team::num_threads(), kMatmulRepeats);
  }
  bench::BenchmarkTimer timer(device);
  return bench::measure_roofs(timer, true).matmul_flops_per_second;
}

std::string matmul_name(Device device) {
  return device == Device::cpu
             ? fmt::format("OpenBLAS sgemm {}^3, {} threads", kMatmulSize, team::num_threads())
             : fmt::format("cuBLASLt bf16 {}^3", bench::kMatmulSizeGpu);
}

void bench_step(const StepArguments& arguments, World& world) {
  share_cores(world);
  // The run directory is only named: a benchmark saves nothing and goes on from nothing.
  ConfigArguments named{.file = arguments.config.file, .overrides = {}};
  for (const std::string& override : arguments.config.overrides) {
    if (!override.starts_with("run.dir=") && !override.starts_with("metrics.sample_every=")) {
      named.overrides.push_back(override);
    }
  }
  named.overrides.insert(named.overrides.end(), {"run.dir=runs/bench", "metrics.sample_every=0"});
  const Config config = load_config_of_job(named, world);
  Trainer trainer(config, own_text_roots(), world);
  trainer.time_communication();
  for (int i = 0; i < kWarmupSteps; ++i) {
    trainer.step();
  }
  // The yardstick is measured before, between and after, so that a machine that slows down while
  // the steps run slows down both.
  const Device device = resolve_device(config.run.device);
  std::vector<double> matmul_rates;
  std::vector<double> seconds;
  double data = 0;
  double model = 0;
  double optimizer = 0;
  double communication = 0;
  double exposed = 0;
  const auto measure_matmul = [&] { matmul_rates.push_back(matmul_flops_per_second(device)); };
  measure_matmul();
  for (std::int64_t i = 0; i < arguments.steps; ++i) {
    const StepResult result = trainer.step();
    seconds.push_back(result.data_seconds + result.model_seconds + result.optimizer_seconds);
    data += result.data_seconds;
    model += result.model_seconds;
    optimizer += result.optimizer_seconds;
    communication += result.communication.value().seconds;
    exposed += result.communication.value().exposed_seconds;
    if (i == arguments.steps / 2) {
      measure_matmul();
    }
  }
  measure_matmul();
  if (world.rank() != 0) {
    return;
  }

  const auto step_tokens =
      static_cast<double>(config.batch.global_batch * config.batch.sequence_length);
  const ModelFlops flops = model_flops_per_token(config.model, config.batch.sequence_length);
  const double tokens_per_second = step_tokens / median(seconds);
  const double model_flops = tokens_per_second * flops.halved;
  // All ranks measure at one time, each on what is its own.
  const double matmul_flops = median(matmul_rates) * world.size();
  const auto num_steps = static_cast<double>(arguments.steps);
  // A rank that waits may wait for more than what moves meanwhile: then nothing is hidden.
  const double hidden = communication > 0 ? std::max(0.0, 1 - exposed / communication) : 0;
  const auto share = [&](double part) { return 100 * part / (data + model + optimizer); };
  if (arguments.json) {
    const nlohmann::ordered_json object = {{"tokens_per_second", tokens_per_second},
                                           {"model_flops_per_second", model_flops},
                                           {"matmul_flops_per_second", matmul_flops},
                                           {"ratio", model_flops / matmul_flops},
                                           {"seconds_per_step", median(seconds)},
                                           {"ranks", world.size()},
                                           {"communication_seconds", communication / num_steps},
                                           {"exposed_seconds", exposed / num_steps},
                                           {"hidden_communication", hidden},
                                           {"device", name_of(device)},
                                           {"threads", team::num_threads()}};
    fmt::print("{}\n", object.dump());
    return;
  }
  fmt::print("{:.0f} tokens/s, {:.3f} s a step (median of {}), device {}\n",
             tokens_per_second,
             median(seconds),
             seconds.size(),
             name_of(device));
  fmt::print("model {:.1f} GFLOP/s (un-halved {:.1f}), {} {:.1f} GFLOP/s, ratio {:.3f}\n",
             model_flops * 1e-9,
             tokens_per_second * flops.unhalved * 1e-9,
             matmul_name(device) +
                 (world.size() > 1 ? fmt::format(", on {} ranks at once", world.size()) : ""),
             matmul_flops * 1e-9,
             model_flops / matmul_flops);
  if (const std::optional<double> peak = peak_flops_per_second(device, world.size())) {
    fmt::print("MFU {:.1f} % of the dense bf16 peak ({:.1f} % un-halved)\n",
               100 * model_flops / *peak,
               100 * tokens_per_second * flops.unhalved / *peak);
  }
  fmt::print("data {:.1f} %, forward and backward {:.1f} %, optimizer {:.1f} %\n",
             share(data),
             share(model),
             share(optimizer));
  if (world.size() > 1) {
    fmt::print(
        "rank 0 of {}: communication {:.4f} s a step, {:.4f} s of it exposed, {:.0f} % hidden\n",
        world.size(),
        communication / num_steps,
        exposed / num_steps,
        100 * hidden);
  }
}

void add_bench_step(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "step", "Times training steps against what a dense product reaches on the same device");
  auto arguments = std::make_shared<StepArguments>();
  add_config_arguments(*command, arguments->config);
  command->add_option("--steps", arguments->steps, "How many steps to time")->check(at_least(1));
  command->add_flag("--json", arguments->json, "One JSON object on standard output");
  command->callback(
      [arguments] { run_as_job([&](World& world) { bench_step(*arguments, world); }); });
}

void add_bench_kernels(CLI::App& bench) {
  struct Arguments {
    std::string filter;
    std::string device = "all";
    bool json = false;
  };
  CLI::App* command =
      bench.add_subcommand("kernels", "Times every op against this machine's copy and matmul rate");
  auto arguments = std::make_shared<Arguments>();
  command->add_option(
      "--filter", arguments->filter, "Only ops whose names begin so; by default all");
  command->add_option("--device", arguments->device, "cpu, cuda, or all that this machine has")
      ->check(one_of({"cpu", "cuda", "all"}));
  command->add_flag("--json", arguments->json, "One JSON object a line");
  command->callback([arguments] {
    use_cores();
    bench::run_op_benchmarks(arguments->filter, arguments->device, arguments->json, std::cout);
  });
}

}  // namespace

void add_bench_command(CLI::App& program) {
  CLI::App* bench = program.add_subcommand("bench", "Measures this machine");
  bench->require_subcommand(1);
  add_bench_step(*bench);
  add_bench_kernels(*bench);
}

}  // namespace memphis
