// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/recompute.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/plan/activations.h"

namespace memphis {
namespace {

// Every set without `block`, none among them.
std::vector<RecomputeGroups> sets_of_groups() {
  std::vector<RecomputeGroups> sets = {{}};
  for (const RecomputeGroup& group : kRecomputeGroups) {
    for (std::size_t i = sets.size(); group.member != &RecomputeGroups::block && i-- > 0;) {
      RecomputeGroups with = sets[i];
      with.*group.member = true;
      sets.push_back(with);
    }
  }
  return sets;
}

bool has_all_of(const RecomputeGroups& groups, const RecomputeGroups& others) {
  return groups.block || std::all_of(std::begin(kRecomputeGroups),
                                     std::end(kRecomputeGroups),
                                     [&](const RecomputeGroup& group) {
                                       return groups.*group.member || !(others.*group.member);
                                     });
}

// Without those of `others`.
std::string words_of(const RecomputeGroups& groups, const RecomputeGroups& others) {
  std::vector<std::string_view> words;
  for (const RecomputeGroup& group : kRecomputeGroups) {
    if (groups.*group.member && !(others.*group.member)) {
      words.push_back(group.member == &RecomputeGroups::block ? "whole blocks" : group.name);
    }
  }
  return fmt::format("{}", fmt::join(words, ", "));
}

// Of a token, in a layer.
RecomputeCost cost_of_layer(const Dims& d, DType compute, const RecomputeGroups& groups) {
  const std::int64_t width =
      d.K * d.local_F + d.local_dense_F;  // of all experts that a token meets
  const auto again = [&](GivenBackBy by) { return gives_back(groups, by); };
  std::int64_t flops = 0;
  std::int64_t elements = 0;  // read or written
  if (again(GivenBackBy::norm)) {
    elements += 2 * 2 * d.D + 2 * d.K * d.D;
  }
  if (again(GivenBackBy::attention)) {
    flops += 2 * d.whole_S * d.local_N * d.H;  // two products of half the square
    elements += (d.local_C + d.local_N) * d.H;
  }
  if (again(GivenBackBy::experts)) {
    flops += 4 * d.D * width;
  }
  if (again(GivenBackBy::geglu)) {
    elements += 3 * width;
  }
  if (again(GivenBackBy::block)) {
    flops += 2 * d.D * (d.local_C + d.local_N) * d.H;
    elements += 3 * d.D + 2 * (d.local_N + d.local_G) * d.H;  // a post norm and the rotation
  }
  return {.flops = static_cast<double>(flops),
          .bytes = static_cast<double>(elements) * static_cast<double>(size_of(compute))};
}

// Of a token, over all layers. `d` is the whole model.
RecomputeCost cost_of(const Dims& d, DType compute, const Recompute& recompute) {
  const RecomputeCost first = cost_of_layer(d, compute, recompute.groups);
  const RecomputeCost other = cost_of_layer(d, compute, recompute.rest);
  const auto n = static_cast<double>(recompute.num_layers);
  const double m = static_cast<double>(d.L) - n;
  return {.flops = n * first.flops + m * other.flops, .bytes = n * first.bytes + m * other.bytes};
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
  const std::string first =
      recompute.num_layers == num_layers
          ? fmt::format("all {} layers", num_layers)
          : fmt::format("the first {} of {} layers", recompute.num_layers, num_layers);
  if (!recompute.any()) {
    return "nothing";
  }
  if (!recompute.rest.any()) {
    return words_of(recompute.groups, {}) + " in " + first;
  }
  std::string text = fmt::format("{} in all {} layers", words_of(recompute.rest, {}), num_layers);
  if (recompute.num_layers > 0 && recompute.groups != recompute.rest) {
    text += fmt::format(", {} too in the first {}",
                        words_of(recompute.groups, recompute.rest),
                        recompute.num_layers);
  }
  return text;
}

RecomputeCost recompute_cost(const ModelConfig& model,
                             std::int64_t sequence_length,
                             DType compute,
                             const Recompute& recompute) {
  return cost_of(make_dims(model, 1, sequence_length), compute, recompute);
}

RecomputeCost recompute_cost_of_layer(const ModelConfig& model,
                                      std::int64_t sequence_length,
                                      DType compute,
                                      const RecomputeGroups& groups) {
  return cost_of_layer(make_dims(model, 1, sequence_length), compute, groups);
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
  const Dims whole = make_dims(model, 1, dims.whole_S);
  ActivationPlan plan = plan_activations(dims, compute, Keep::all_layers, Device::cpu);
  const auto candidate = [&](const Recompute& recompute) -> Candidate {
    plan.recompute = recompute;
    return {.recompute = recompute,
            .weight = cost_of(whole, compute, recompute).weight(),
            .bytes = plan.activation_bytes() + plan.workspace_bytes()};
  };
  std::vector<RecomputeGroups> sets = sets_of_groups();
  std::vector<Candidate> candidates;
  for (const RecomputeGroups& rest : sets) {
    candidates.push_back(candidate({.groups = rest, .num_layers = L, .rest = {}}));
  }
  sets.push_back({.block = true});
  for (const RecomputeGroups& groups : sets) {
    for (const RecomputeGroups& rest : sets_of_groups()) {
      for (std::int64_t layers = 1;
           groups != rest && has_all_of(groups, rest) && layers <= (rest.any() ? L - 1 : L);
           ++layers) {
        candidates.push_back(candidate({.groups = groups, .num_layers = layers, .rest = rest}));
      }
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
