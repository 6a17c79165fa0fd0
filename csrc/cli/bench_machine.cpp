// SPDX-License-Identifier: Apache-2.0
#include "csrc/cli/bench_machine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "bench/timer.h"
#include "csrc/cli/commands.h"
#include "csrc/cli/source_tree.h"
#include "csrc/cli/threads.h"
#include "csrc/comm/job.h"
#include "csrc/comm/together.h"
#include "csrc/config/config.h"
#include "csrc/core/arena.h"
#include "csrc/core/error.h"
#include "csrc/core/memory_pools.h"
#include "csrc/core/parallel.h"
#include "csrc/plan/machine.h"
#include "csrc/train/agreement.h"

namespace memphis {
namespace {

constexpr double kGiga = 1e9;
constexpr double kTera = 1e12;

struct MachineArguments {
  std::string device = "auto";
  std::string like;
};

// Of a group, what its ranks measure together.
struct Measured {
  double latency_seconds = 0;  // of one message
  double gather_per_second = 0;
  double rows_per_second = 0;
};

// The median over calls that all ranks begin together, of the rank that waits longest.
double seconds_of(Communicator& group, Stream stream, const std::function<void()>& call) {
  constexpr int kRepeats = 9;
  std::vector<double> seconds;
  call();  // connections are made by the first one
  for (int i = 0; i < kRepeats; ++i) {
    synchronize(stream);
    std::int64_t number = 0;
    const TensorView view(&number, {1}, DType::i64, Device::cpu);
    group.run(AllReduce{.y = view, .x = view}, "machine.begin", {});
    const auto begin = std::chrono::steady_clock::now();
    call();
    synchronize(stream);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::int64_t nanoseconds = std::llround(bench::median(seconds) * kGiga);
  return static_cast<double>(largest_of_all(group, nanoseconds, "machine.slowest")) / kGiga;
}

// `host` has the same ranks as `group`, whose operands are on the stream's device.
Measured measure_links(Communicator& host, Communicator& group, Stream stream) {
  const auto count = static_cast<std::int64_t>(group.size());
  // So much that its time is that of bytes, and none of a processor's caches has it.
  const std::int64_t piece =
      (stream.device == Device::cpu ? std::int64_t{16} << 20 : std::int64_t{256} << 20) / count;
  const std::int64_t bytes = piece * count;
  Arena arena("machine links", 2 * arena_bytes(TensorSpec({bytes}, DType::i32)), stream.device);
  const TensorView whole = arena.allocate(TensorSpec({bytes / 4}, DType::i32));
  const TensorView other = arena.allocate(TensorSpec({bytes / 4}, DType::i32));
  device_zero(whole.data, whole.bytes(), stream);
  device_zero(other.data, other.bytes(), stream);

  const auto gather_seconds = [&](std::int64_t elements) {
    const TensorView y = whole.rows(0, elements * count);
    const TensorView x = other.rows(0, elements);
    return seconds_of(
        host, stream, [&] { group.run(AllGather{.y = y, .x = x}, "machine.gather", stream); });
  };
  const std::int64_t piece_elements = piece / 4;
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(count), piece_elements);
  const double rows_seconds = seconds_of(host, stream, [&] {
    group.run(AllToAll{.y = whole.rows(0, piece_elements * count),
                       .x = other.rows(0, piece_elements * count),
                       .send_rows = rows,
                       .recv_rows = rows},
              "machine.rows",
              stream);
  });
  const double empty = gather_seconds(1);
  const auto moved =
      static_cast<double>(bytes) * static_cast<double>(count - 1) / static_cast<double>(count);
  return {.latency_seconds = empty / static_cast<double>(count - 1),
          .gather_per_second = moved / std::max(gather_seconds(piece_elements) - empty, 1e-9),
          .rows_per_second = moved / std::max(rows_seconds - empty, 1e-9)};
}

// Of all ranks, those on this one's machine, ascending.
std::vector<int> ranks_here(Communicator& all) {
  std::vector<std::int64_t> identities(static_cast<std::size_t>(all.size()));
  std::int64_t own = machine_identity();
  all.run(AllGather{.y = {identities.data(), {all.size()}, DType::i64, Device::cpu},
                    .x = {&own, {1}, DType::i64, Device::cpu}},
          "machine.identity",
          {});
  std::vector<int> ranks;
  for (int rank = 0; rank < all.size(); ++rank) {
    if (identities[static_cast<std::size_t>(rank)] == own) {
      ranks.push_back(rank);
    }
  }
  return ranks;
}

// Two digits more than are known.
double rounded(double value) {
  return std::stod(fmt::format("{:.4g}", value));
}

// Numbers of ranks that measure at one time differ: the machine is that of the slowest.
double least_of_all(Communicator& all, double value) {
  constexpr double kUnit = 1e6;
  return static_cast<double>(-largest_of_all(all, -std::llround(value * kUnit), "machine.least")) /
         kUnit;
}

// Products of several sizes on a GPU, and its copy.
void measure_gpu(Communicator& all, bench::BenchmarkTimer& timer, Machine& machine) {
  machine.measured_gflop.clear();
  machine.measured_per_mille.clear();
  together(all, "machine.products", [] {});
  std::vector<double> rates;
  for (std::int64_t size = 1024; size <= 16384; size *= 2) {
    const auto edge = static_cast<double>(size);
    rates.push_back(bench::measure_square_product(timer, size));
    machine.measured_gflop.push_back(std::llround(2 * edge * edge * edge / kGiga));
  }
  const double large = *std::max_element(rates.begin(), rates.end());
  for (const double rate : rates) {
    machine.measured_per_mille.push_back(std::max(std::llround(1000 * rate / large), 1LL));
  }
  together(all, "machine.copy", [] {});
  const double copy = bench::measure_roofs(timer, false).copy_bytes_per_second / kGiga;
  machine.memory_gb_per_second = std::max(machine.memory_gb_per_second, copy);
  machine.copy_share = rounded(least_of_all(all, copy / machine.memory_gb_per_second));
  machine.large_bf16_tflops = rounded(least_of_all(all, large / kTera));
  machine.peak_bf16_tflops = std::max(machine.peak_bf16_tflops, machine.large_bf16_tflops);
}

// Others run on a processor's cores too, and its clock goes up and down by the second: products and
// copies take turns for long enough to meet what a step will meet. What a maker says of its products
// is of no use then: MFU is counted of what is measured.
void measure_processor(Communicator& all, bench::BenchmarkTimer& timer, Machine& machine) {
  constexpr int kRounds = 5;
  constexpr std::int64_t kSize = 1024;
  std::vector<double> products;
  std::vector<double> copies;
  for (int round = 0; round < kRounds; ++round) {
    together(all, "machine.products", [] {});
    products.push_back(bench::measure_square_product(timer, kSize) / kTera);
    together(all, "machine.copy", [] {});
    copies.push_back(bench::measure_roofs(timer, false).copy_bytes_per_second / kGiga);
  }
  machine.measured_gflop.clear();
  machine.measured_per_mille.clear();
  machine.large_f32_tflops = rounded(least_of_all(all, bench::median(products)));
  machine.peak_f32_tflops = machine.large_f32_tflops;
  machine.memory_gb_per_second = rounded(least_of_all(all, bench::median(copies)));
  machine.copy_share = 1;
}

LinkLevel level_of(const Measured& measured, LinkLevel like, double sharers) {
  like.latency_us = rounded(measured.latency_seconds * 1e6);
  like.gb_per_second = rounded(measured.gather_per_second / kGiga / sharers);
  like.rows_gb_per_second = rounded(measured.rows_per_second / kGiga);
  return like;
}

Machine machine_like(const MachineArguments& arguments, Device device) {
  if (arguments.like.empty() && device == Device::cuda) {
    throw ConfigError(
        "bench machine --device cuda is given no --like (peaks, failures, power and links that the "
        "ranks of this job do not have are not measured, and are taken from a machine that is "
        "like it); add --like h100_sxm, or another of configs/machines");
  }
  return load_machine(
      find_machine(arguments.like.empty() ? "cpu" : arguments.like, machine_folders()));
}

void bench_machine(const MachineArguments& arguments, World& world) {
  share_cores(world);
  const RunConfig run{.device = arguments.device == "cpu"    ? DeviceChoice::cpu
                                : arguments.device == "cuda" ? DeviceChoice::cuda
                                                             : DeviceChoice::automatic};
  const std::unique_ptr<Communicator> all = create_group_of_all(world, "machine");
  const Device device = take_device(run, world, *all);
  const DeviceInfo info = device_info(device);
  if (info.simulated) {
    throw PreflightError(
        "the GPU is simulated on the processor (its times say nothing of any GPU); measure with "
        "--device cpu, or a build for a GPU");
  }
  Machine machine = machine_like(arguments, device);
  const std::vector<int> here = ranks_here(*all);
  const auto num_here = static_cast<std::int64_t>(here.size());
  std::string links = "no links: one rank has none";

  {
    bench::BenchmarkTimer timer(device);
    if (device == Device::cpu) {
      measure_processor(*all, timer, machine);
    } else {
      measure_gpu(*all, timer, machine);
    }
  }
  if (all->size() > 1) {
    const OwnedStream stream(device);
    std::vector<int> everybody(static_cast<std::size_t>(all->size()));
    std::iota(everybody.begin(), everybody.end(), 0);
    if (num_here > 1) {
      const auto host = world.create_group("machine.node", here, Device::cpu);
      const auto group = world.create_group("machine.node", here, device);
      machine.node = level_of(measure_links(*host, *group, stream.view()), machine.node, 1);
      machine.node.ranks = num_here;
      links = "node's links by gathers and exchanges of rows";
    }
    if (num_here < all->size()) {
      const auto group = world.create_group("machine.all", everybody, device);
      const LinkLevel far = level_of(
          measure_links(*all, *group, stream.view()), machine.pod, static_cast<double>(num_here));
      machine.pod = far;
      machine.cluster.latency_us = far.latency_us;
      machine.cluster.gb_per_second = far.gb_per_second;
      machine.cluster.rows_gb_per_second = far.rows_gb_per_second;
      links = num_here > 1 ? "links by gathers and exchanges of rows, in a node and among nodes"
                           : "links among nodes by gathers and exchanges of rows";
    }
    // A pod is made of whole nodes.
    machine.pod.ranks =
        std::max<std::int64_t>(machine.pod.ranks / machine.node.ranks, 1) * machine.node.ranks;
    machine.cluster.ranks = std::max(machine.cluster.ranks, machine.pod.ranks);
  }
  const double free_gib =
      static_cast<double>(info.free_bytes) / static_cast<double>(std::int64_t{1} << 30);
  machine.memory_gib = rounded(least_of_all(
      *all, device == Device::cpu ? free_gib / static_cast<double>(num_here) : free_gib));
  machine.name = device == Device::cpu ? fmt::format("{}, ranks of {} thread{}",
                                                     info.name,
                                                     team::num_threads(),
                                                     team::num_threads() == 1 ? "" : "s")
                                       : info.name;
  if (world.rank() != 0) {
    return;
  }
  fmt::print(
      "# Measured by `memphis bench machine` in a job of {}, {} on each machine, all at once:\n"
      "# products, copies, free memory, {}.\n"
      "# The rest is that of {}: {}failures, power{}.\n{}",
      world.size() == 1 ? "1 rank" : fmt::format("{} ranks", world.size()),
      num_here,
      links,
      arguments.like.empty() ? "cpu" : arguments.like,
      device == Device::cuda ? "peaks, products in fp8 and f32, " : "",
      num_here == all->size() ? ", links among nodes" : "",
      to_yaml(machine));
}

}  // namespace

void add_bench_machine(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("machine",
                                           "Measures this machine for `plan --machine`, as many "
                                           "ranks at once as the job has, and prints "
                                           "its file");
  auto arguments = std::make_shared<MachineArguments>();
  command->add_option("--device", arguments->device, "auto, cpu or cuda")
      ->check(one_of({"auto", "cpu", "cuda"}));
  command->add_option("--like",
                      arguments->like,
                      "The machine that has what is not measured: a name in configs/machines, or a "
                      "file; by default cpu for a processor");
  command->callback(
      [arguments] { run_as_job([&](World& world) { bench_machine(*arguments, world); }); });
}

}  // namespace memphis
