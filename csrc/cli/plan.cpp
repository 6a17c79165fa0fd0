// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/config/config_file.h"
#include "csrc/config/load.h"
#include "csrc/core/file.h"
#include "csrc/plan/flops.h"
#include "csrc/plan/mesh.h"
#include "csrc/train/trainer.h"

namespace memphis {
namespace {

// A plan may be made for a GPU on a machine without one.
Device planned_device(DeviceChoice choice) {
  return choice == DeviceChoice::cuda ? Device::cuda : resolve_device(choice);
}

void print_mesh(const Mesh& mesh) {
  fmt::print("\nranks {}; along each axis, and who is there with rank 0\n", mesh.num_ranks());
  for (const Axis axis :
       {Axis::data, Axis::tensor, Axis::expert_data, Axis::expert, Axis::expert_tensor}) {
    const RankGroup group = mesh.group(axis, 0);
    // "0, 2 ... 6"
    std::string ranks = std::to_string(group.first);
    if (group.count > 1) {
      ranks += fmt::format(", {}", group.first + group.stride);
    }
    if (group.count > 2) {
      ranks += fmt::format(" ... {}", group.first + (group.count - 1) * group.stride);
    }
    fmt::print("  {:<14} {:>6}   ranks {}\n", name_of(axis), group.count, ranks);
  }
}

void print_plan(const Config& config, std::int64_t num_ranks) {
  const Device device = planned_device(config.run.device);
  const DType compute = resolve_compute(config.precision.compute, device);
  const Mesh mesh(config.parallel, num_ranks);
  const TrainingPlan plan = plan_training(config, device, compute, mesh);
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
             config.batch.global_batch / (config.batch.micro_batch * config.parallel.data));
  if (num_ranks > 1) {
    print_mesh(mesh);
  }
  fmt::print("memory of a rank on its device\n{}", format_memory_table(plan.memory));
}

}  // namespace

void add_plan_command(CLI::App& program) {
  CLI::App* command =
      program.add_subcommand("plan", "Prints what a config will do, and touches nothing");
  struct Arguments {
    ConfigArguments config;
    std::int64_t num_ranks = 1;
  };
  auto arguments = std::make_shared<Arguments>();
  add_config_arguments(*command, arguments->config);
  command->add_option("--ranks", arguments->num_ranks, "How many ranks the job would have")
      ->check(at_least(1));
  command->callback([arguments] {
    const ConfigArguments& config = arguments->config;
    require_config_file(config.file);
    print_plan(parse_config(read_text(config.file),
                            config.file,
                            config.overrides,
                            Check::text,
                            arguments->num_ranks),
               arguments->num_ranks);
  });
}

}  // namespace memphis
