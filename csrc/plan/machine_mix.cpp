// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/machine_mix.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <system_error>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr const char* kForm = "NAME, or NAME:RANKS,NAME:RANKS";

// "h100_sxm:150000"; no number where there is none. A path may hold a colon: what follows the last
// one is a number, or a part of it.
struct Named {
  std::string name;
  std::int64_t num_ranks = 0;
};
Named named(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) {
    return {std::string(text)};
  }
  const std::string_view digits = text.substr(colon + 1);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value < 1) {
    return {std::string(text)};
  }
  return {std::string(text.substr(0, colon)), value};
}

double share_of(const MachinePart& part, double num_ranks) {
  return static_cast<double>(part.num_ranks) / num_ranks;
}

void keep_worse(LinkLevel& link, const LinkLevel& other) {
  link.latency_us = std::max(link.latency_us, other.latency_us);
  link.gb_per_second = std::min(link.gb_per_second, other.gb_per_second);
  link.rows_gb_per_second = std::min(link.rows_gb_per_second, other.rows_gb_per_second);
}

void require_like(const Machine& first, const Machine& other) {
  if (first.node.ranks != other.node.ranks || first.pod.ranks != other.pod.ranks) {
    throw ConfigError(fmt::format(
        "--machine has {} with {} ranks in a node and {} in a pod, and {} with {} and {} (one "
        "layout cannot lie on both alike); plan them as two jobs",
        first.name,
        first.node.ranks,
        first.pod.ranks,
        other.name,
        other.node.ranks,
        other.pod.ranks));
  }
}

}  // namespace

std::vector<MachinePart> parse_machine_parts(const std::string& text,
                                             std::int64_t num_ranks,
                                             const std::vector<std::filesystem::path>& folders) {
  std::vector<MachinePart> parts;
  std::int64_t total = 0;
  const bool is_list = text.find(',') != std::string::npos;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t comma = std::min(text.find(',', begin), text.size());
    const Named part = named(std::string_view(text).substr(begin, comma - begin));
    begin = comma + 1;
    if (is_list && part.num_ranks == 0) {
      throw ConfigError(
          fmt::format("--machine is {} and gives {} no ranks (of several machines each has some); "
                      "write {}",
                      text,
                      part.name.empty() ? "an empty name" : part.name,
                      kForm));
    }
    parts.push_back({load_machine(find_machine(part.name, folders)),
                     part.num_ranks == 0 ? num_ranks : part.num_ranks});
    total += parts.back().num_ranks;
    require_like(parts.front().machine, parts.back().machine);
  }
  if (total != num_ranks) {
    throw ConfigError(
        fmt::format("--machine is {} and has {} ranks, and --ranks is {} (each rank is on one "
                    "machine); make them agree",
                    text,
                    total,
                    num_ranks));
  }
  return parts;
}

Machine machine_of_all(const std::vector<MachinePart>& parts) {
  Machine all = parts.front().machine;
  if (parts.size() == 1) {
    return all;
  }
  double num_ranks = 0;
  for (const MachinePart& part : parts) {
    num_ranks += static_cast<double>(part.num_ranks);
  }
  for (double Machine::*mean : {&Machine::peak_bf16_tflops,
                                &Machine::peak_fp8_tflops,
                                &Machine::peak_f32_tflops,
                                &Machine::idle_watts,
                                &Machine::busy_watts}) {
    all.*mean = 0;
    for (const MachinePart& part : parts) {
      all.*mean += share_of(part, num_ranks) * (part.machine.*mean);
    }
  }
  double failures_an_hour = 0;  // of a rank
  double slowest = all.bytes_per_second();
  for (const MachinePart& part : parts) {
    const Machine& one = part.machine;
    require_like(all, one);
    failures_an_hour += share_of(part, num_ranks) / one.rank_hours_between_failures;
    if (&part != &parts.front()) {
      all.name += " and " + one.name;
    }
    all.memory_gib = std::min(all.memory_gib, one.memory_gib);
    // The table is that of the slowest at large products, of whose rate its entries are parts.
    if (one.large_bf16_tflops + one.large_f32_tflops <
        all.large_bf16_tflops + all.large_f32_tflops) {
      all.measured_gflop = one.measured_gflop;
      all.measured_per_mille = one.measured_per_mille;
      all.multiprocessors = one.multiprocessors;
    }
    all.large_bf16_tflops = std::min(all.large_bf16_tflops, one.large_bf16_tflops);
    all.large_fp8_tflops = std::min(all.large_fp8_tflops, one.large_fp8_tflops);
    all.large_f32_tflops = std::min(all.large_f32_tflops, one.large_f32_tflops);
    if (one.bytes_per_second() < slowest) {
      slowest = one.bytes_per_second();
      all.memory_gb_per_second = one.memory_gb_per_second;
      all.copy_share = one.copy_share;
    }
    keep_worse(all.node, one.node);
    keep_worse(all.pod, one.pod);
    keep_worse(all.cluster, one.cluster);
    all.cluster.ranks = std::max(all.cluster.ranks, one.cluster.ranks);
    all.restart_seconds = std::max(all.restart_seconds, one.restart_seconds);
    all.save_gb_per_second = std::min(all.save_gb_per_second, one.save_gb_per_second);
  }
  all.rank_hours_between_failures = 1 / failures_an_hour;
  return all;
}

double seconds_of_proportional_shares(const std::vector<MachinePart>& parts,
                                      const std::vector<double>& seconds_of_part) {
  double num_ranks = 0;
  double steps_a_second = 0;  // of all ranks, if each went its own way
  for (std::size_t i = 0; i < parts.size(); ++i) {
    num_ranks += static_cast<double>(parts[i].num_ranks);
    steps_a_second += static_cast<double>(parts[i].num_ranks) / seconds_of_part[i];
  }
  return num_ranks / steps_a_second;
}

}  // namespace memphis
