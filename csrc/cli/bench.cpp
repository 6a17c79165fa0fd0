// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "bench/run_op_benchmarks.h"
#include "bench/timer.h"
#include "csrc/cli/bench_machine.h"
#include "csrc/cli/commands.h"
#include "csrc/cli/source_tree.h"
#include "csrc/cli/threads.h"
#include "csrc/comm/clock_offset.h"
#include "csrc/comm/job.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/json.h"
#include "csrc/core/parallel.h"
#include "csrc/plan/flops.h"
#include "csrc/train/communication_report.h"
#include "csrc/train/gpu_telemetry.h"
#include "csrc/train/trainer.h"
#include "kernels/cpu/openblas.h"
#include "kernels/matmul/matmul.h"
#include "kernels/op_profile.h"

namespace memphis {
namespace {

constexpr int kWarmupSteps = 3;
constexpr std::int64_t kMatmulSize = 1024;
constexpr int kMatmulRepeats = 20;
// Of all steps; a call takes 200 bytes.
constexpr std::size_t kMaxLoggedCalls = std::size_t{1} << 20U;
constexpr int kProfiledSteps = 3;
constexpr std::size_t kMaxProfiledCalls = kProfiledSteps * (std::size_t{1} << 14U);

struct StepArguments {
  ConfigArguments config;
  std::int64_t steps = 12;
  bool json = false;
};

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

nlohmann::ordered_json json_of(const CommunicationRow& row) {
  nlohmann::ordered_json object = {{"axis", row.axis}, {"name", row.name}};
  if (row.is_message()) {
    object["from_stage"] = row.from_stage;
    object["to_stage"] = row.to_stage;
  }
  object["calls"] = row.calls;
  object["bytes"] = row.bytes;
  object["timed"] = row.timed;
  if (row.timed) {
    object["under_way_seconds"] = row.under_way_seconds;
    object["exposed_seconds"] = row.exposed_seconds;
    object["worst_exposed_seconds"] = row.worst_exposed_seconds;
    object["hidden"] = row.hidden();
    if (row.is_message()) {
      object["bubble_seconds"] = row.bubble_seconds;
    }
  }
  return object;
}

void print_row(const std::string& what, const CommunicationRow& row) {
  constexpr double kMilli = 1e3;
  fmt::print("  {:<45}  {:>6g}  {:>11.0f}", what, row.calls, row.bytes);
  if (!row.timed) {
    fmt::print("  not timed on this device\n");
    return;
  }
  fmt::print("  {:>9.3f}  {:>7.3f}  {:>7.3f}  {:>5.0f} %",
             row.under_way_seconds * kMilli,
             row.exposed_seconds * kMilli,
             row.worst_exposed_seconds * kMilli,
             100 * row.hidden());
  if (row.is_message()) {
    fmt::print("  {:>7.3f}", row.bubble_seconds * kMilli);
  }
  fmt::print("\n");
}

// Rows of messages follow those of collectives.
void print_communication(const std::vector<CommunicationRow>& rows) {
  const auto print_header = [](const char* what, const char* more) {
    fmt::print("  {:<45}  {:>6}  {:>11}  {:>9}  {:>7}  {:>7}  {:>7}{}\n",
               what,
               "calls",
               "bytes",
               "under way",
               "exposed",
               "worst",
               "hidden",
               more);
  };
  fmt::print(
      "\ncollectives, ms a step: the mean of the ranks that call, and what is exposed on the "
      "worst; "
      "calls and bytes of the rank that has most\n");
  print_header("axis, name", "");
  bool messages = false;
  for (const CommunicationRow& row : rows) {
    if (!row.is_message()) {
      print_row(row.axis + " " + row.name, row);
      continue;
    }
    if (!messages) {
      messages = true;
      fmt::print(
          "\nmessages of the pipeline, ms a step: the mean of the pairs of ranks; in the bubble a "
          "rank waits for what is not made yet, or has no place yet\n");
      print_header("from stage, to stage", "   bubble");
    }
    print_row(fmt::format("{} -> {} {}", row.from_stage, row.to_stage, row.name), row);
  }
}

// An op, and how long it must take on a device of these rates.
struct OpRow {
  kernels::OpTotals totals;
  double least_seconds;
};

// Ops of a kind, each beside the least that it can take.
std::string_view class_of(std::string_view op) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 18> kClasses = {
      {{"attention", "attention"},
       {"gather_heads", "attention"},
       {"rope", "attention"},
       {"experts", "experts"},
       {"grouped_matmul", "experts"},
       {"geglu", "experts"},
       {"matmul", "dense products"},
       {"rmsnorm", "norms"},
       {"router", "routing"},
       {"permute", "routing"},
       {"unpermute", "routing"},
       {"arrival_index", "routing"},
       {"gather_choices", "routing"},
       {"spread_choices", "routing"},
       {"cross_entropy", "loss"},
       {"embedding", "embedding"},
       {"adamw", "optimizer"},
       {"global_norm", "optimizer"}}};
  for (const auto& [begin, name] : kClasses) {
    if (op.starts_with(begin)) {
      return name;
    }
  }
  return "other";
}

// Most seconds first.
std::vector<OpRow> classes_of(const std::vector<OpRow>& ops) {
  std::vector<OpRow> classes;
  for (const OpRow& op : ops) {
    const std::string_view name = class_of(op.totals.op);
    const auto found = std::find_if(
        classes.begin(), classes.end(), [&](const OpRow& each) { return each.totals.op == name; });
    OpRow& row = found != classes.end()
                     ? *found
                     : classes.emplace_back(OpRow{.totals = {.op = name}, .least_seconds = 0});
    row.totals.calls += op.totals.calls;
    row.totals.seconds += op.totals.seconds;
    row.totals.bytes += op.totals.bytes;
    row.totals.flops += op.totals.flops;
    row.least_seconds += op.least_seconds;
  }
  std::sort(classes.begin(), classes.end(), [](const OpRow& a, const OpRow& b) {
    return a.totals.seconds > b.totals.seconds;
  });
  return classes;
}

// What the host asks of the GPU, summed over steps.
struct Launches {
  std::uint64_t enqueued = 0;
  std::uint64_t stalls = 0;
  std::int64_t graph_nodes = 0;  // of the last step
};

// One more step. `while_at_work` is called when all of it is on its way.
StepResult count_launches(Trainer& trainer,
                          Launches& launches,
                          const std::function<void()>& while_at_work) {
  const std::uint64_t enqueued = enqueued_count();
  const std::uint64_t stalls = stall_count();
  StepResult result = trainer.step(while_at_work);
  launches.enqueued += enqueued_count() - enqueued;
  launches.stalls += stall_count() - stalls;
  launches.graph_nodes = result.graph_nodes;
  return result;
}

void print_launches(const Launches& launches, double num_steps) {
  const double enqueued = static_cast<double>(launches.enqueued) / num_steps;
  fmt::print("launches a step: {}; waits of the GPU for the host: {:g}\n",
             launches.graph_nodes > 0
                 ? fmt::format("{:g}, graphs of {} kernels, products, copies, memsets and events",
                               enqueued,
                               launches.graph_nodes)
                 : fmt::format("{:g} kernels, products, copies and memsets, no graph", enqueued),
             static_cast<double>(launches.stalls) / num_steps);
}

// Of a step, launched op by op.
struct OpsOfStep {
  std::vector<OpRow> ops;      // none where there is no room for all calls
  double seconds_between = 0;  // in which none of them is at work
};

// Of the steps that follow, which are not those that were timed: a GPU's events take time of their
// own.
OpsOfStep profile_ops(Trainer& trainer, Device device, double matmul_flops_per_second) {
  std::vector<kernels::OpTotals> totals;
  OpsOfStep result;
  {
    const kernels::OpProfile profile(trainer.stream(), kMaxProfiledCalls);
    for (int i = 0; i < kProfiledSteps; ++i) {
      trainer.step();
    }
    totals = profile.totals();
    if (profile.num_left_out() > 0) {
      return {};
    }
    result.seconds_between = profile.seconds_between() / kProfiledSteps;
  }
  bench::BenchmarkTimer timer(device);
  const double copy = bench::measure_roofs(timer, false).copy_bytes_per_second;
  for (kernels::OpTotals& each : totals) {
    each.calls /= kProfiledSteps;
    each.seconds /= kProfiledSteps;
    each.bytes /= kProfiledSteps;
    each.flops /= kProfiledSteps;
    result.ops.push_back(
        {.totals = each,
         .least_seconds = std::max(each.bytes / copy, each.flops / matmul_flops_per_second)});
  }
  return result;
}

void print_op_rows(const char* what, const std::vector<OpRow>& rows, double step_seconds) {
  constexpr double kMilli = 1e3;
  constexpr double kGiga = 1e-9;
  fmt::print("  {:<26}  {:>6}  {:>9}  {:>6}  {:>8}  {:>9}  {:>9}  {:>6}\n",
             what,
             "calls",
             "ms",
             "share",
             "GB/s",
             "GFLOP/s",
             "at least",
             "of it");
  for (const auto& [totals, least] : rows) {
    fmt::print("  {:<26}  {:>6}  {:>9.3f}  {:>4.1f} %  {:>8.1f}  {:>9}  {:>9.3f}  {:>4.0f} %\n",
               totals.op,
               totals.calls,
               totals.seconds * kMilli,
               100 * totals.seconds / step_seconds,
               totals.bytes / totals.seconds * kGiga,
               totals.flops > 0 ? fmt::format("{:.1f}", totals.flops / totals.seconds * kGiga) : "",
               least * kMilli,
               100 * least / totals.seconds);
  }
}

void print_ops(const OpsOfStep& step, double step_seconds) {
  constexpr double kMilli = 1e3;
  if (step.ops.empty()) {
    fmt::print("\na step has more calls of ops than there is room for: none is shown by itself\n");
    return;
  }
  fmt::print(
      "\nops, ms a step; at least: what the bytes of their operands take, each moved once, at the "
      "rate of a copy, or their products at that of a dense one, whichever is more\n");
  print_op_rows("op", step.ops, step_seconds);
  double seconds = 0;
  for (const OpRow& row : step.ops) {
    seconds += row.totals.seconds;
  }
  const auto print_sum = [&](const char* what, double of_step) {
    fmt::print("  {:<26}  {:>6}  {:>9.3f}  {:>4.1f} %\n",
               what,
               "",
               of_step * kMilli,
               100 * of_step / step_seconds);
  };
  print_sum("all ops", seconds);
  print_sum("between ops", step.seconds_between);
  fmt::print("\n");
  print_op_rows("kind", classes_of(step.ops), step_seconds);
}

nlohmann::ordered_json json_of(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

// What a GPU does not say of itself is "-".
void print_course(const GpuCourse& course) {
  const std::string slowed_by = describe_throttle(course.throttle_reasons);
  fmt::print("GPU of rank 0 in these steps: SM clock {}, power {}{}\n",
             course.sm_mhz ? fmt::format("{:.0f} MHz", *course.sm_mhz) : "-",
             course.watts ? fmt::format("{:.0f} W", *course.watts) : "-",
             slowed_by.empty() ? "" : ", slowed by " + slowed_by);
}

void print_matmul_choices(const std::string& library, const std::vector<std::string>& choices) {
  fmt::print("products by {}{}\n", library, choices.empty() ? "" : ", as it chose for each:");
  for (const std::string& choice : choices) {
    fmt::print("  {}\n", choice);
  }
}

nlohmann::ordered_json json_of(const OpRow& row) {
  return {{"op", std::string(row.totals.op)},
          {"calls", row.totals.calls},
          {"seconds", row.totals.seconds},
          {"bytes", row.totals.bytes},
          {"flops", row.totals.flops},
          {"least_seconds", row.least_seconds}};
}

void bench_step(const StepArguments& arguments, World& world) {
  share_cores(world);
  // The run directory is only named: a benchmark saves nothing and goes on from nothing. Nor is memory of
  // the host pinned for what is saved, of which a large model has tens of GiB, at a few GiB a second,
  // unless that is asked for.
  ConfigArguments named{.file = arguments.config.file,
                        .overrides = {"checkpoint.background=never"}};
  for (const std::string& override : arguments.config.overrides) {
    if (override.starts_with("checkpoint.background=")) {
      named.overrides.front() = override;
    } else if (!override.starts_with("run.dir=") &&
               !override.starts_with("metrics.sample_every=")) {
      named.overrides.push_back(override);
    }
  }
  named.overrides.insert(named.overrides.end(), {"run.dir=runs/bench", "metrics.sample_every=0"});
  const Config config = load_config_of_job(named, world);
  Trainer trainer(config, own_text_roots(), world);
  if (world.size() > 1) {  // one rank has none, and runs its steps as a run does
    trainer.time_communication();
  }
  for (int i = 0; i < kWarmupSteps; ++i) {
    trainer.step();
  }
  const std::unique_ptr<Communicator> all = create_group_of_all(world, "bench");
  const ClockOffset before = measure_clock_offset(*all);
  // The yardstick is measured before, between and after, so that a machine that slows down while
  // the steps run slows down both.
  const Device device = resolve_device(config.run.device);
  std::vector<double> matmul_rates;
  std::vector<double> seconds;
  // An optimizer is shared out over ranks, and once a step however many micro-batches it has: what it
  // takes on one rank says little of many.
  std::vector<double> seconds_without_optimizer;
  double data = 0;
  double model = 0;
  double optimizer = 0;
  double communication = 0;
  double exposed = 0;
  Launches launches;
  // Power and clock are of the steps alone: the products between them draw more.
  std::optional<GpuTelemetry> telemetry;
  std::optional<GpuCourseMeter> meter;
  if (device == Device::cuda && !device_info(device).simulated) {
    telemetry.emplace(kNvmlName, gpu_identity());
    meter.emplace(*telemetry);
  }
  const auto sample = [&] {
    if (meter) {
      meter->sample();
    }
  };
  const auto measure_matmul = [&] {
    if (meter) {
      meter->end();
    }
    matmul_rates.push_back(matmul_flops_per_second(device));
    if (meter) {
      meter->begin();
    }
  };
  measure_matmul();
  world.activity().start_log(kMaxLoggedCalls);
  for (std::int64_t i = 0; i < arguments.steps; ++i) {
    const StepResult result = count_launches(trainer, launches, sample);
    seconds_without_optimizer.push_back(result.data_seconds + result.model_seconds);
    seconds.push_back(seconds_without_optimizer.back() + result.optimizer_seconds);
    data += result.data_seconds;
    model += result.model_seconds;
    optimizer += result.optimizer_seconds;
    communication += result.communication.value().seconds;
    exposed += result.communication.value().exposed_seconds;
    if (i == arguments.steps / 2) {
      measure_matmul();
    }
  }
  const CommunicationLog& log = world.activity().finish_log();
  measure_matmul();
  const auto num_left_out =
      largest_of_all(*all, static_cast<std::int64_t>(log.num_left_out()), "communication.left_out");
  const ClockOffset after = measure_clock_offset(*all);
  const std::vector<CommunicationRow> rows =
      gather_rows(*all, log.records(), before, after, arguments.steps);
  const OpsOfStep ops = profile_ops(trainer, device, bench::median(matmul_rates));
  const GpuCourse course = meter ? meter->course() : GpuCourse{};
  if (world.rank() != 0) {
    return;
  }

  const auto step_tokens =
      static_cast<double>(config.batch.global_batch * config.batch.sequence_length);
  const ModelFlops flops = model_flops_per_token(config.model, config.batch.sequence_length);
  const double tokens_per_second = step_tokens / bench::median(seconds);
  const double without_optimizer = step_tokens / bench::median(seconds_without_optimizer);
  const double model_flops = tokens_per_second * flops.halved;
  // All ranks measure at one time, each on what is its own.
  const double matmul_flops = bench::median(matmul_rates) * world.size();
  const auto num_steps = static_cast<double>(arguments.steps);
  // A rank that waits may wait for more than what moves meanwhile: then nothing is hidden.
  const double hidden = communication > 0 ? std::max(0.0, 1 - exposed / communication) : 0;
  const auto share = [&](double part) { return 100 * part / (data + model + optimizer); };
  const std::optional<double> peak = peak_flops_per_second(device, world.size());
  if (arguments.json) {
    nlohmann::ordered_json object = {
        {"tokens_per_second", tokens_per_second},
        {"tokens_per_second_without_optimizer", without_optimizer},
        {"model_flops_per_second", model_flops},
        {"matmul_flops_per_second", matmul_flops},
        {"ratio", model_flops / matmul_flops},
        {"ratio_without_optimizer", without_optimizer * flops.halved / matmul_flops},
        {"seconds_per_step", bench::median(seconds)},
        {"ranks", world.size()},
        {"communication_seconds", communication / num_steps},
        {"exposed_seconds", exposed / num_steps},
        {"hidden_communication", hidden},
        {"device", name_of(device)},
        {"threads", team::num_threads()},
        {"matmul_library", kernels::matmul_library(device)},
        {"matmul_choices", kernels::matmul_choices(device)}};
    if (peak) {
      object["mfu"] = model_flops / *peak;
      object["mfu_unhalved"] = tokens_per_second * flops.unhalved / *peak;
      object["mfu_without_optimizer"] = without_optimizer * flops.halved / *peak;
      object["mfu_unhalved_without_optimizer"] = without_optimizer * flops.unhalved / *peak;
    }
    if (device == Device::cuda) {
      object["launches"] = static_cast<double>(launches.enqueued) / num_steps;
      object["graph_nodes"] = launches.graph_nodes;
      object["stalls"] = static_cast<double>(launches.stalls) / num_steps;
      object["sm_mhz"] = json_of(course.sm_mhz);
      object["watts"] = json_of(course.watts);
      object["slowed_by"] = describe_throttle(course.throttle_reasons);
    }
    object["seconds_between_ops"] = ops.seconds_between;
    object["ops"] = nlohmann::ordered_json::array();
    for (const OpRow& row : ops.ops) {
      object["ops"].push_back(json_of(row));
    }
    object["kinds"] = nlohmann::ordered_json::array();
    for (const OpRow& row : classes_of(ops.ops)) {
      object["kinds"].push_back(json_of(row));
    }
    object["calls_left_out"] = num_left_out;
    if (num_left_out == 0) {
      object["collectives"] = nlohmann::ordered_json::array();
      for (const CommunicationRow& row : rows) {
        object["collectives"].push_back(json_of(row));
      }
    }
    fmt::print("{}\n", object.dump());
    return;
  }
  fmt::print(
      "{:.0f} tokens/s ({:.0f} without the optimizer), {:.3f} s a step (median of {}), device {}\n",
      tokens_per_second,
      without_optimizer,
      bench::median(seconds),
      seconds.size(),
      name_of(device));
  fmt::print("model {:.1f} GFLOP/s (un-halved {:.1f}), {} {:.1f} GFLOP/s, ratio {:.3f}\n",
             model_flops * 1e-9,
             tokens_per_second * flops.unhalved * 1e-9,
             matmul_name(device) +
                 (world.size() > 1 ? fmt::format(", on {} ranks at once", world.size()) : ""),
             matmul_flops * 1e-9,
             model_flops / matmul_flops);
  const auto print_shares = [&](const char* what, double rate) {
    const auto of_peak = [&](double flops_per_token) {
      return peak ? fmt::format("{:.1f} %", 100 * rate * flops_per_token / *peak)
                  : std::string("-");
    };
    fmt::print("  {:<22}  {:>8}  {:>9}  {:>5.3f}\n",
               what,
               of_peak(flops.halved),
               of_peak(flops.unhalved),
               rate * flops.halved / matmul_flops);
  };
  fmt::print(
      "  {:<22}  {:>8}  {:>9}  {:>5}\n", "MFU of the bf16 peak", "halved", "un-halved", "ratio");
  print_shares("with the optimizer", tokens_per_second);
  print_shares("without", without_optimizer);
  fmt::print("data {:.1f} %, forward and backward {:.1f} %, optimizer {:.1f} %\n",
             share(data),
             share(model),
             share(optimizer));
  if (device == Device::cuda) {
    print_launches(launches, num_steps);
    print_course(course);
  }
  print_ops(ops, bench::median(seconds));
  print_matmul_choices(kernels::matmul_library(device), kernels::matmul_choices(device));
  if (world.size() > 1) {
    fmt::print(
        "rank 0 of {}: communication {:.4f} s a step, {:.4f} s of it exposed, {:.0f} % hidden\n",
        world.size(),
        communication / num_steps,
        exposed / num_steps,
        100 * hidden);
    if (num_left_out > 0) {
      fmt::print(
          "no collective is shown by itself: a rank made {} calls more than the {} that there is "
          "room for; take fewer --steps than {}\n",
          num_left_out,
          kMaxLoggedCalls,
          arguments.steps);
    } else {
      print_communication(rows);
    }
  }
}

void add_bench_step(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "step", "Times training steps against what a dense product reaches on the same device");
  auto arguments = std::make_shared<StepArguments>();
  add_config_arguments(*command, arguments->config);
  command->add_option("--steps", arguments->steps, "How many steps to time")->check(whole(1));
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
  add_bench_machine(*bench);
}

}  // namespace memphis
