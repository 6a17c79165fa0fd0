// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/config/load.h"
#include "csrc/core/file.h"
#include "csrc/plan/flops.h"
#include "csrc/train/trainer.h"

namespace memphis {
namespace {

// A plan may be made for a GPU on a machine without one.
Device planned_device(DeviceChoice choice) {
  return choice == DeviceChoice::cuda ? Device::cuda : resolve_device(choice);
}

void print_plan(const Config& config) {
  const Device device = planned_device(config.run.device);
  const DType compute = resolve_compute(config.precision.compute, device);
  const TrainingPlan plan = plan_training(config, device, compute);
  const ModelFlops flops = model_flops_per_token(config.model, config.batch.sequence_length);
  const std::int64_t step_tokens = config.batch.global_batch * config.batch.sequence_length;
  fmt::print("{}", to_yaml(config));
  fmt::print("\ndevice {}, compute {}\n", name_of(device), name_of(compute));
  fmt::print("parameters {}\n", plan.parameters.num_parameters);
  fmt::print("model FLOP a token {:.4e} (causal half of attention), {:.4e} (whole square)\n",
             flops.halved,
             flops.unhalved);
  fmt::print("tokens a step {}, micro-batches a step {}\n",
             step_tokens,
             config.batch.global_batch / config.batch.micro_batch);
  fmt::print("memory on the device\n{}", format_memory_table(plan.memory));
}

}  // namespace

void add_plan_command(CLI::App& program) {
  CLI::App* command =
      program.add_subcommand("plan", "Prints what a config will do, and touches nothing");
  auto arguments = std::make_shared<ConfigArguments>();
  add_config_arguments(*command, *arguments);
  command->callback([arguments] {
    print_plan(parse_config(
        read_text(arguments->file), arguments->file, arguments->overrides, Check::text));
  });
}

}  // namespace memphis
