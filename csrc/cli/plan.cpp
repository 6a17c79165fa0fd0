// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/store.h"
#include "csrc/cli/commands.h"
#include "csrc/cli/source_tree.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/config/resume_rules.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/plan/context_exchange.h"
#include "csrc/plan/effective_time.h"
#include "csrc/plan/flops.h"
#include "csrc/plan/layout_search.h"
#include "csrc/plan/machine.h"
#include "csrc/plan/machine_mix.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/schedule_simulation.h"
#include "csrc/plan/stage_costs.h"
#include "csrc/plan/stages.h"
#include "csrc/plan/step_time.h"
#include "csrc/plan/training_plan.h"
#include "csrc/plan/ways_to_fit.h"
#include "csrc/train/resume.h"
#include "csrc/train/run_lock.h"
#include "kernels/matmul/matmul.h"

namespace memphis {
namespace {

// A plan may be made for a GPU on a machine without one.
Device planned_device(DeviceChoice choice) {
  return choice == DeviceChoice::cuda ? Device::cuda : resolve_device(choice);
}

void print_mesh(const Mesh& mesh) {
  fmt::print("\nranks {}; along each axis, and who is there with rank 0\n", mesh.num_ranks());
  for (const Axis axis : kAxes) {
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

// What a rank has room for, and whose that is.
struct Room {
  DeviceRoom planned;
  std::string name;
};
Room room_of(const MemoryConfig& config, Device device, const std::optional<Machine>& machine) {
  if (machine) {
    Room room{
        .planned = {.device = device,
                    .library_bytes = kernels::matmul_workspace_bytes(device),
                    .budget_bytes = static_cast<std::size_t>(machine->memory_gib * (1 << 30))},
        .name = "of " + machine->name};
    if (config.budget_gib > 0) {
      room.planned.budget_bytes = budget_bytes(config);
      room.name = "of memory.budget_gib";
    }
    return room;
  }
  Room room{.planned = {.device = device,
                        .library_bytes = kernels::matmul_workspace_bytes(device),
                        .budget_bytes = kH100Bytes},
            .name = "of an H100 of 80 GB"};
  if (device_available(device)) {
    room.planned.budget_bytes = device_info(device).free_bytes;
    room.name = "free on this machine for one rank";
  }
  // Of a GPU that is here no more can be had than it has; another one may be larger than an H100.
  const std::size_t budget = budget_bytes(config);
  if (budget < room.planned.budget_bytes || (config.budget_gib > 0 && !device_available(device))) {
    room.planned.budget_bytes = budget;
    room.name = "of memory.budget_gib";
  }
  return room;
}

std::string describe(const LayoutPrice& price) {
  return fmt::format(
      "the TFLOP of the largest rank are {:.3f} times the mean, and the bubble is {:.2f} %",
      price.imbalance,
      100 * price.bubble_share);
}

// FLOP, which are counted, and no seconds, which would be guessed.
void print_stages(const Config& config, DType compute, const StagePlans& plans) {
  constexpr double kTera = 1e12;
  const PipelineSchedule& schedule = plans.largest.schedule;
  const PipelineShape& shape = schedule.shape;
  const StageLayout layout = stage_layout(config.model, config.parallel);
  const MicroBatchFlops flops =
      micro_batch_flops(config.model, config.batch, compute, plans.largest.activations.recompute);
  const LayerCosts costs = layer_costs(flops);
  double mean = 0;
  for (const StageLayers& stage : layout) {
    mean += cost_of(stage, costs) / static_cast<double>(layout.size());
  }
  fmt::print(
      "\nschedule {}, chunks {}; TFLOP of a micro-batch, forward and backward, on all ranks "
      "that share it\n"
      "  stage  rank  chunk       TFLOP  of mean  bytes of its rank  holds\n",
      name_of(shape.kind),
      shape.num_chunks);
  for (std::int64_t s = 0; s < shape.num_stages(); ++s) {
    const StageLayers& stage = layout[static_cast<std::size_t>(s)];
    const StagePlace place = shape.place_of(s);
    const double cost = cost_of(stage, costs);
    fmt::print("  {:>5}  {:>4}  {:>5}  {:>#10.4g}  {:>7.3f}  {:>17}  {}\n",
               s,
               place.rank,
               place.chunk,
               cost / kTera,
               cost / mean,
               human_bytes(plans.bytes[static_cast<std::size_t>(place.rank)]),
               describe(stage));
  }
  const LayoutPrice chosen = price(layout, flops, schedule);
  const PipelineSimulation even = simulate(schedule, evened(pipeline_costs(layout, flops)));
  fmt::print("{}; it would be {:.2f} % if all stages cost the same (messages cost nothing here)\n",
             describe(chosen),
             100 * even.bubble_share);
  const std::optional<StageLayout> better = better_layout(layout, flops, schedule);
  if (!better) {
    fmt::print("no layout of stages that was tried takes less time\n");
    return;
  }
  std::vector<std::int64_t> counts;
  for (const StageLayers& stage : *better) {
    counts.push_back(stage.layers.count);
  }
  const LayoutPrice balanced = price(*better, flops, schedule);
  fmt::print("parallel.stages=[{}] takes {:.2f} % less time: {}\n",
             fmt::join(counts, ","),
             100 * (1 - balanced.makespan / chosen.makespan),
             describe(balanced));
}

void print_memory(const Config& config, DType compute, const Room& room, const StagePlans& plans) {
  const TrainingPlan& plan = plans.largest;
  const Recompute& recompute = plan.activations.recompute;
  fmt::print("memory of {} on its device\n{}",
             plans.bytes.size() == 1
                 ? "a rank"
                 : fmt::format("the rank that takes most ({} along pipeline)", plans.largest_rank),
             format_memory_table(plan.memory));
  if (!plan.communication.groups.empty()) {
    fmt::print("communication takes {}: {}\n",
               room.planned.device == Device::cuda ? "what NCCL is said to, none of it measured"
                                                   : "what sums and gathers keep",
               describe(plan.communication));
  }
  fmt::print("{}\n", describe_saves(plan, config.checkpoint));
  fmt::print("computed again in the backward pass: {}\n",
             describe(recompute, config.model.num_layers));
  if (recompute.any()) {
    const std::int64_t S = config.batch.sequence_length;
    const RecomputeCost cost = recompute_cost(config.model, S, compute, recompute);
    fmt::print("  {:.2f} % of the model's FLOP again, and {:.2f} MiB read and written a token\n",
               100 * cost.flops / model_flops_per_token(config.model, S).halved,
               cost.bytes / (1024 * 1024));
  }
  const Dims& dims = plan.dims;
  if (dims.head_chunk < dims.T) {
    fmt::print("logits of {} tokens of {} at a time\n", dims.head_chunk, dims.T);
  }
  if (dims.exchange_keys) {
    fmt::print("{}\n", describe_key_exchange(config, dims));
  }
  if (plan.dims.exchange_rows) {
    const double shares = static_cast<double>(plan.dims.local_R) / plan.dims.equal_share_of_rows();
    fmt::print("experts have room for {} rows of a micro-batch, {:.2f} times an equal share{}\n",
               plan.dims.local_R,
               shares,
               config.parallel.expert_buffer == 0
                   ? ": no routing needs more"
                   : "; a micro-batch that routes more to one rank ends the run");
  }
  if (plan.dims.exchange_rows) {
    fmt::print("{}\n", describe_expert_overlap(plan, config));
  }
  if (plan.dims.tensor_parallel) {
    fmt::print("{}\n", describe_tensor_overlap(plan));
  }
  const std::size_t needed = plan.memory.needed_bytes(room.planned.device);
  const std::size_t budget = room.planned.budget_bytes;
  fmt::print("{}: {} of {} {}{}\n",
             needed <= budget ? "fits" : "does not fit",
             human_bytes(needed),
             human_bytes(budget),
             room.name,
             needed <= budget ? "" : fmt::format(", {} too many", human_bytes(needed - budget)));
}

std::string overrides_text(const TimedConfig& timed) {
  return timed.overrides.empty() ? "the config as it is"
                                 : fmt::format("{}", fmt::join(timed.overrides, " "));
}

void print_changes(const std::vector<TimedConfig>& changes, double now) {
  for (const TimedConfig& change : changes) {
    fmt::print("  {}\n      {:.4g} s, {:.1f} % less; {}\n",
               overrides_text(change),
               change.time.seconds,
               100 * (1 - change.time.seconds / now),
               human_bytes(change.bytes));
  }
}

// What is left of the time over a long run, and what it takes.
void print_run(const Config& config,
               DType compute,
               const Mesh& mesh,
               const StagePlans& plans,
               const Machine& machine,
               const StepTime& time) {
  constexpr double kHour = 3600;
  const auto ranks = static_cast<double>(mesh.num_ranks());
  const MemoryPlan& memory = plans.largest.memory;
  // Each rank saves its piece of the masters, or of the weights where they are their own, and moments.
  const auto saved =
      static_cast<double>(memory.moments_bytes +
                          (memory.master_bytes > 0 ? memory.master_bytes : memory.weights_bytes));
  const Interruptions of = interruptions_of(machine, mesh.num_ranks(), saved);
  const EffectiveTime left = effective_time(of);
  fmt::print(
      "a failure every {:.4g} h; with saves of {:.3g} s, one every {:.4g} s ({:.0f} steps) is "
      "best: "
      "{:.1f} % of the time is steps that count, {:.0f} steps are done again after a failure\n",
      of.seconds_between_failures / kHour,
      of.save_seconds,
      left.interval_seconds,
      std::max(std::round(left.interval_seconds / time.seconds), 1.0),
      100 * left.share,
      left.lost_seconds / time.seconds);
  const Products products = compute == DType::bf16 ? Products::bf16 : Products::f32;
  const double watts = watts_of_rank(machine, time, products);
  const auto steps = static_cast<double>(config.schedule.steps);
  const double seconds = steps * time.seconds / left.share;
  fmt::print(
      "{:.0f} kW, {:.3g} J a token; schedule.steps {} take {:.4g} days and {:.0f} MWh\n"
      "one rank at 0.9 of the others' rate would cost {:.1f} % of the time\n",
      watts * ranks / 1000,
      watts / time.tokens_per_second_of_rank / left.share,
      config.schedule.steps,
      seconds / kHour / 24,
      seconds / kHour * watts * ranks / 1e6,
      100 * (1 - time.seconds / time_of(config, compute, mesh, plans, machine, 0.9).seconds));
}

// Who waits for whom, where ranks are not all of one kind.
void print_parts(const Config& config,
                 DType compute,
                 const Mesh& mesh,
                 const StagePlans& plans,
                 const std::vector<MachinePart>& parts,
                 double seconds_of_all) {
  std::vector<double> seconds;
  fmt::print("all ranks have equal shares and wait for each other; a part alone would take\n");
  for (const MachinePart& part : parts) {
    seconds.push_back(time_of(config, compute, mesh, plans, part.machine).seconds);
    fmt::print("  {:<20} {:>8} ranks  {:>10.4g} s: waits {:.1f} % of a step\n",
               part.machine.name,
               part.num_ranks,
               seconds.back(),
               100 * (1 - seconds.back() / seconds_of_all));
  }
  fmt::print("with shares in proportion to speed, which no run has, a step would take {:.4g} s\n",
             seconds_of_proportional_shares(parts, seconds));
}

// What the planner's model says; docs/planner.md has how far it is from what others measured.
void print_time(const Config& config,
                DType compute,
                const Mesh& mesh,
                const Room& room,
                const StagePlans& plans,
                const std::vector<MachinePart>& parts) {
  const Machine machine = machine_of_all(parts);
  const StepTime time = time_of(config, compute, mesh, plans, machine);
  fmt::print(
      "\nprojection for {} ({}), not measured: {:.4g} s a step, {:.0f} tokens/s a rank\n"
      "{:.1f} TFLOP/s of the model a rank, MFU {:.1f} % (causal half of attention), {:.1f} % "
      "(whole "
      "square)\n",
      machine.name,
      mesh.num_ranks() == 1 ? "1 rank" : fmt::format("{} ranks", mesh.num_ranks()),
      time.seconds,
      time.tokens_per_second_of_rank,
      time.model_tflops,
      100 * time.mfu,
      100 * time.unhalved_mfu);
  fmt::print("where the time of the rank with most work goes\n");
  for (int i = 0; i < kNumParts; ++i) {
    const double seconds = time.parts[static_cast<std::size_t>(i)];
    if (seconds > 0) {
      fmt::print("  {:<20} {:>10.4g} s  {:>5.1f} %\n",
                 name_of(static_cast<StepPart>(i)),
                 seconds,
                 100 * seconds / time.seconds);
    }
  }
  fmt::print("what binds it is {}\n", name_of(time.binding()));
  if (parts.size() > 1) {
    print_parts(config, compute, mesh, plans, parts, time.seconds);
  }
  print_run(config, compute, mesh, plans, machine, time);
  const std::vector<TimedConfig> faster =
      faster_changes(config, compute, room.planned, machine, mesh.num_ranks(), time.seconds);
  if (faster.empty()) {
    fmt::print("no change of one key that was tried takes less time and fits\n");
  } else {
    fmt::print("what takes less time and fits, the best first\n");
    print_changes(faster, time.seconds);
  }
}

void print_search(const Config& config, std::int64_t num_ranks, const Machine& machine) {
  const Device device = planned_device(config.run.device);
  const DType compute = resolve_compute(config.precision.compute, device);
  const Room room = room_of(config.memory, device, machine);
  const LayoutSearch search = search_layouts(config, compute, room.planned, machine, num_ranks);
  fmt::print(
      "{} layouts of {} ranks; projection for {}, not measured; none of the {} that were not "
      "planned "
      "can be better than those that are listed\n",
      search.num_tried,
      num_ranks,
      machine.name,
      search.num_tried - search.num_planned);
  if (search.best.empty()) {
    fmt::print("none of them fits in {} {}\n", human_bytes(room.planned.budget_bytes), room.name);
  }
  for (const TimedConfig& layout : search.best) {
    fmt::print("  {:.4g} s, {:.0f} tokens/s a rank, MFU {:.1f} %, {}\n      {}\n",
               layout.time.seconds,
               layout.time.tokens_per_second_of_rank,
               100 * layout.time.mfu,
               human_bytes(layout.bytes),
               overrides_text(layout));
  }
}

void print_plan(const Config& config,
                std::int64_t num_ranks,
                const std::vector<MachinePart>& parts) {
  const Device device = planned_device(config.run.device);
  const DType compute = resolve_compute(config.precision.compute, device);
  const Mesh mesh(config.parallel, num_ranks);
  const Room room =
      room_of(config.memory,
              device,
              parts.empty() ? std::nullopt : std::optional<Machine>(machine_of_all(parts)));
  const StagePlans plans = plan_all_stages(config, compute, room.planned, mesh);
  const ModelFlops flops = model_flops_per_token(config.model, config.batch.sequence_length);
  const std::int64_t step_tokens = config.batch.global_batch * config.batch.sequence_length;
  fmt::print("{}", to_yaml(config));
  fmt::print("\ndevice {}, compute {}\n", name_of(device), name_of(compute));
  fmt::print("parameters {}\n", plans.largest.parameters.num_parameters);
  fmt::print("model FLOP a token {:.4e} (causal half of attention), {:.4e} (whole square)\n",
             flops.halved,
             flops.unhalved);
  fmt::print(
      "tokens a step {}, micro-batches a step {}\n", step_tokens, plans.largest.num_micro_batches);
  if (num_ranks > 1) {
    print_mesh(mesh);
  }
  if (plans.largest.schedule.shape.num_stages() > 1) {
    print_stages(config, compute, plans);
  }
  print_memory(config, compute, room, plans);
  fmt::print("{}", describe(ways_to_fit(config, compute, room.planned, num_ranks), num_ranks));
  if (!parts.empty()) {
    print_time(config, compute, mesh, room, plans, parts);
  }
}

std::string lines(const std::vector<std::string>& each, const char* what) {
  std::string text;
  for (const std::string& line : each) {
    text += fmt::format("  {:<9}{}\n", what, line);
  }
  return text;
}

// What `train` would say of going on from what run.dir holds; fails as that would.
void print_resume(const Config& config, std::int64_t num_ranks) {
  fmt::print("\nwhat a resume may change\n{}", resume_text());
  const std::filesystem::path run_dir = config.run.dir;
  if (const std::optional<std::string> owner = RunLock::owner(run_dir)) {
    fmt::print("\nrun.dir {} is in use by {}; below is what it has saved so far\n",
               run_dir.string(),
               *owner);
  }
  // Sizes are looked at and bytes are not: train reads them back.
  std::optional<Found> found = choose_checkpoint(run_dir, config.run.resume, verify_sizes);
  if (!found) {
    fmt::print("\nrun.dir {} holds no checkpoint: the run starts from step 0\n", run_dir.string());
    return;
  }
  const Chosen chosen = chosen_from(found->path, std::move(found->manifest));
  std::optional<Dataset> dataset;
  std::string no_text;
  try {
    dataset = open_dataset(config.data,
                           config.batch.sequence_length,
                           own_text_roots(),
                           config.run.dir,
                           {.vocab_size = config.model.vocab_size, .pad_id = config.model.pad_id});
  } catch (const DataError& error) {
    no_text = error.what();
  }
  const std::unique_ptr<World> world = make_solo_world();
  const std::unique_ptr<Communicator> all = create_group_of_all(*world);
  const Device device = planned_device(config.run.device);
  const Resumption resumption =
      compare_with_checkpoint(chosen,
                              config,
                              resolve_compute(config.precision.compute, device),
                              // A GPU's run may be planned where there is none.
                              device == Device::cpu ? kernels::matmul_library(device) : "",
                              dataset ? &*dataset : nullptr,
                              *all);
  world->close();

  fmt::print("\nthis config on {} ranks against {} of {}\n",
             num_ranks,
             chosen.path.string(),
             chosen.num_writers);
  if (!no_text.empty()) {
    fmt::print("  the text is not compared: {}\n", no_text);
  }
  std::vector<std::string> refused;
  if (!resumption.contents.difference.empty()) {
    refused.push_back("it " + describe(resumption.contents.difference));
  }
  for (const Resumption::Refusal& refusal : resumption.refused) {
    refused.push_back(fmt::format("{} ({})", refusal.what, refusal.why));
  }
  if (refused.empty() && resumption.said.empty()) {
    fmt::print("  nothing differs that training or its losses depend on\n");
  }
  fmt::print("{}{}", lines(refused, "refused"), lines(resumption.said, "goes on"));
  fmt::print("next step {}, next sample {} of {} tokens\n",
             chosen.manifest.step + 1,
             resumption.samples,
             config.batch.sequence_length);
  require_same_run(chosen, resumption);
}

}  // namespace

void add_plan_command(CLI::App& program) {
  CLI::App* command =
      program.add_subcommand("plan", "Prints what a config will do, and touches nothing");
  struct Arguments {
    ConfigArguments config;
    std::int64_t num_ranks = 1;
    bool resume = false;
    bool search = false;
    std::string machine;
  };
  auto arguments = std::make_shared<Arguments>();
  add_config_arguments(*command, arguments->config);
  command->add_option("--ranks", arguments->num_ranks, "How many ranks the job would have")
      ->check(whole(1));
  command->add_flag(
      "--resume",
      arguments->resume,
      "Also what going on from the checkpoint in run.dir would change, and whether it "
      "may; fails where it may not");
  command->add_option(
      "--machine",
      arguments->machine,
      "How long a step would take there, by a model: a name in configs/machines, or a file; "
      "NAME:RANKS,NAME:RANKS where ranks are of several kinds");
  command
      ->add_flag(
          "--search",
          arguments->search,
          "Instead of the plan, the layouts of --ranks that fit on --machine, the best first")
      ->needs("--machine")
      ->excludes("--resume");
  command->callback([arguments] {
    const ConfigArguments& given = arguments->config;
    std::vector<MachinePart> parts;
    if (!arguments->machine.empty()) {
      parts = parse_machine_parts(arguments->machine, arguments->num_ranks, machine_folders());
    }
    const Config config = parse_config(read_config(given.file),
                                       given.file,
                                       given.overrides,
                                       Check::elsewhere,
                                       arguments->num_ranks);
    if (arguments->search) {
      print_search(config, arguments->num_ranks, machine_of_all(parts));
      return;
    }
    print_plan(config, arguments->num_ranks, parts);
    if (arguments->resume) {
      print_resume(config, arguments->num_ranks);
    }
  });
}

}  // namespace memphis
