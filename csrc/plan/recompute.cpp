// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/recompute.h"

#include <algorithm>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/plan/activations.h"

namespace memphis {
namespace {

// Every set that makes sense; `block` has the others in it.
std::vector<RecomputeGroups> all_sets() {
  std::vector<RecomputeGroups> sets;
  for (unsigned bits = 1; bits < 16; ++bits) {
    sets.push_back({.norm = (bits & 1U) != 0,
                    .attention = (bits & 2U) != 0,
                    .experts = (bits & 4U) != 0,
                    .geglu = (bits & 8U) != 0});
  }
  sets.push_back({.block = true});
  return sets;
}

}  // namespace

bool gives_back(const RecomputeGroups& groups, GivenBackBy by) {
  switch (by) {
    case GivenBackBy::nothing:
      return false;
    case GivenBackBy::norm:
      return groups.norm || groups.block;
    case GivenBackBy::attention:
      return groups.attention || groups.block;
    case GivenBackBy::experts:
      return groups.experts || groups.block;
    case GivenBackBy::geglu:
      return groups.geglu || groups.block;
    case GivenBackBy::block:
      return groups.block;
  }
  return false;
}

std::string describe(const Recompute& recompute, std::int64_t num_layers) {
  if (!recompute.any()) {
    return "nothing";
  }
  std::vector<std::string> words;
  const RecomputeGroups& groups = recompute.groups;
  for (const auto& [is_in, word] : {std::pair{groups.block, "whole blocks"},
                                    {groups.norm, "norm"},
                                    {groups.attention, "attention"},
                                    {groups.experts, "experts"},
                                    {groups.geglu, "geglu"}}) {
    if (is_in) {
      words.emplace_back(word);
    }
  }
  return fmt::format(
      "{} in {}",
      fmt::join(words, ", "),
      recompute.num_layers == num_layers
          ? fmt::format("all {} layers", num_layers)
          : fmt::format("the first {} of {} layers", recompute.num_layers, num_layers));
}

RecomputeCost recompute_cost(const ModelConfig& model,
                             std::int64_t sequence_length,
                             DType compute,
                             const Recompute& recompute) {
  const Dims d = make_dims(model, 1, sequence_length);
  const RecomputeGroups& groups = recompute.groups;
  const std::int64_t width = d.K * d.F + d.dense_F;  // of all that a token meets
  const auto again = [&](GivenBackBy by) { return gives_back(groups, by); };
  std::int64_t flops = 0;
  std::int64_t elements = 0;  // read or written
  if (again(GivenBackBy::norm)) {
    elements += 2 * 2 * d.D + 2 * d.K * d.D;
  }
  if (again(GivenBackBy::attention)) {
    flops += 2 * d.S * d.N * d.H;  // two products of half the square
    elements += (d.C + d.N) * d.H;
  }
  if (again(GivenBackBy::experts)) {
    flops += 4 * d.D * width;
  }
  if (again(GivenBackBy::geglu)) {
    elements += 3 * width;
  }
  if (again(GivenBackBy::block)) {
    flops += 2 * d.D * (d.C + d.N) * d.H + 2 * d.D * width;
    elements += 3 * d.D + 2 * (d.N + d.G) * d.H + (d.K + 1) * d.D;  // post norm, rope, sum of rows
  }
  const auto layers = static_cast<double>(recompute.num_layers);
  return {.flops = layers * static_cast<double>(flops),
          .bytes = layers * static_cast<double>(elements) * static_cast<double>(size_of(compute))};
}

std::vector<Recompute> recompute_options(const ModelConfig& model,
                                         const MemoryConfig& memory,
                                         const Dims& dims,
                                         DType compute) {
  const std::int64_t L = model.num_layers;
  if (!memory.recompute_auto) {
    const std::int64_t layers = memory.recompute_layers == 0 ? L : memory.recompute_layers;
    return {{.groups = memory.recompute, .num_layers = memory.recompute.any() ? layers : 0}};
  }
  struct Candidate {
    Recompute recompute;
    double weight;
    std::size_t bytes;
  };
  const auto candidate = [&](const Recompute& recompute) -> Candidate {
    const ActivationPlan plan =
        plan_activations(dims, compute, Keep::all_layers, Device::cpu, recompute);
    return {.recompute = recompute,
            .weight = recompute_cost(model, dims.S, compute, recompute).weight(),
            .bytes = plan.activation_bytes() + plan.workspace_bytes()};
  };
  std::vector<Candidate> candidates = {candidate({})};
  for (const RecomputeGroups& groups : all_sets()) {
    for (std::int64_t layers = 1; layers <= L; ++layers) {
      candidates.push_back(candidate({.groups = groups, .num_layers = layers}));
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
    return std::pair(a.weight, a.bytes) < std::pair(b.weight, b.bytes);
  });
  std::vector<Recompute> options;
  std::size_t least = 0;
  for (const Candidate& each : candidates) {
    if (options.empty() || each.bytes < least) {
      options.push_back(each.recompute);
      least = each.bytes;
    }
  }
  return options;
}

}  // namespace memphis
