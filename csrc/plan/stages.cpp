// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/stages.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <random>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

std::string runs_of(const std::vector<Range>& runs) {
  std::string result;
  for (const Range& run : runs) {
    result += result.empty() ? "" : ", ";
    result += run.count == 1 ? std::to_string(run.begin)
                             : fmt::format("{} to {}", run.begin, run.end() - 1);
  }
  const bool one = runs.size() == 1 && runs.front().count == 1;
  return (one ? "layer " : "layers ") + result;
}

// Adds `layer` to the runs of those before it.
void append(std::vector<Range>& runs, std::int64_t layer) {
  if (!runs.empty() && runs.back().end() == layer) {
    ++runs.back().count;
  } else {
    runs.push_back({.begin = layer, .count = 1});
  }
}

// Stages of so many layers each, one after the other.
StageLayout make_layout(const std::vector<std::int64_t>& counts) {
  StageLayout result;
  std::int64_t begin = 0;
  for (const std::int64_t count : counts) {
    result.push_back({.layers = {.begin = begin, .count = count}});
    begin += count;
  }
  result.front().embedding = true;
  result.back().head = true;
  return result;
}

void require_costs(const LayerCosts& costs, std::int64_t num_stages) {
  require(num_stages >= 1, fmt::format("layers are cut into a stage at least, not {}", num_stages));
  const auto is_cost = [](double cost) { return std::isfinite(cost) && cost >= 0; };
  require(is_cost(costs.embedding) && is_cost(costs.head) &&
              std::all_of(costs.layers.begin(), costs.layers.end(), is_cost),
          "costs of layers, embedding and head are finite and not negative");
}

// The cost of any run of layers as one stage, as cost_of() would sum it up to rounding.
class StageCosts {
 public:
  StageCosts(const LayerCosts& costs, std::int64_t num_stages)
      : costs_(costs), num_stages_(num_stages), sums_(costs.layers.size() + 1, 0) {
    for (std::size_t i = 0; i < costs.layers.size(); ++i) {
      sums_[i + 1] = sums_[i] + costs.layers[i];
    }
  }

  double of(std::int64_t stage, std::int64_t begin, std::int64_t end) const {
    return sums_[at(end)] - sums_[at(begin)] + (stage == 0 ? costs_.embedding : 0) +
           (stage == num_stages_ - 1 ? costs_.head : 0);
  }

 private:
  const LayerCosts& costs_;
  std::int64_t num_stages_;
  std::vector<double> sums_;
};

// Cuts the layers into stages for the least sum, or the least maximum, of what `price` says of
// each. Of equals the last stage has most layers, then the one before it.
template <class Price, class Join>
std::pair<double, std::vector<std::int64_t>> best_cut(std::int64_t num_layers,
                                                      std::int64_t num_stages,
                                                      const Price& price,
                                                      const Join& join) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const std::int64_t width = num_layers + 1;
  // Of stages 0 .. s with the first l layers: the best price, and where stage s begins.
  std::vector<double> best(at(num_stages * width), kNever);
  std::vector<std::int64_t> begins(at(num_stages * width), 0);
  for (std::int64_t s = 0; s < num_stages; ++s) {
    for (std::int64_t end = 0; end <= num_layers; ++end) {
      for (std::int64_t begin = 0; begin <= (s == 0 ? 0 : end); ++begin) {
        const double before = s == 0 ? 0 : best[at((s - 1) * width + begin)];
        const double joined = join(before, price(s, begin, end));
        if (joined < best[at(s * width + end)]) {
          best[at(s * width + end)] = joined;
          begins[at(s * width + end)] = begin;
        }
      }
    }
  }
  std::vector<std::int64_t> counts(at(num_stages), 0);
  std::int64_t end = num_layers;
  for (std::int64_t s = num_stages - 1; s >= 0; --s) {
    const std::int64_t begin = begins[at(s * width + end)];
    counts[at(s)] = end - begin;
    end = begin;
  }
  return {best.back(), counts};
}

// How good a layout of stages with so many layers is: first the largest rank, then how far ranks
// differ, then the largest stage.
class RankBalance {
 public:
  RankBalance(const LayerCosts& costs, StagePlacement placement, std::int64_t p, std::int64_t v)
      : stage_costs_(costs, p * v), placement_(placement), num_ranks_(p) {}

  struct Score {
    double largest_rank;
    double squares;
    double largest_stage;

    // Differences within rounding are none, so that a search ends.
    bool is_better_than(const Score& other) const {
      constexpr double kRounding = 1e-12;
      for (const auto& [mine, others] : {std::pair{largest_rank, other.largest_rank},
                                         std::pair{squares, other.squares},
                                         std::pair{largest_stage, other.largest_stage}}) {
        if (std::abs(mine - others) > kRounding * std::max(mine, others)) {
          return mine < others;
        }
      }
      return false;
    }
  };

  Score score(const std::vector<std::int64_t>& counts) const {
    std::vector<double> ranks(at(num_ranks_), 0);
    Score result{.largest_rank = 0, .squares = 0, .largest_stage = 0};
    std::int64_t begin = 0;
    for (std::int64_t s = 0; s < static_cast<std::int64_t>(counts.size()); ++s) {
      const double cost = stage_costs_.of(s, begin, begin + counts[at(s)]);
      begin += counts[at(s)];
      ranks[at(place_of(placement_, num_ranks_, s).rank)] += cost;
      result.largest_stage = std::max(result.largest_stage, cost);
    }
    for (const double rank : ranks) {
      result.largest_rank = std::max(result.largest_rank, rank);
      result.squares += rank * rank;
    }
    return result;
  }

  // Moves layers from one stage to another, each time where it betters most, until none does. The
  // number of layouts that were looked at.
  std::int64_t improve(std::vector<std::int64_t>& counts) const {
    Score now = score(counts);
    std::int64_t num_tried = 0;
    for (bool moved = true; moved;) {
      moved = false;
      std::vector<std::int64_t> best = counts;
      for (std::size_t from = 0; from < counts.size(); ++from) {
        for (std::size_t to = 0; counts[from] > 0 && to < counts.size(); ++to) {
          std::vector<std::int64_t> tried = counts;
          --tried[from];
          ++tried[to];
          const Score then = score(tried);
          ++num_tried;
          if (then.is_better_than(now)) {
            now = then;
            best = tried;
            moved = true;
          }
        }
      }
      counts = best;
    }
    return num_tried;
  }

  // Leaves what no single move betters by a few moves at random, and improves from there, for a
  // time that is bounded by kBudget. The same result on each rank: the numbers are those of the
  // standard.
  void search(std::vector<std::int64_t>& counts) const {
    constexpr std::int64_t kBudget = 2'000'000;  // prices of stages: hundredths of a second
    constexpr std::uint32_t kMostMoves = 4;
    const auto num_stages = static_cast<std::uint32_t>(counts.size());
    std::int64_t left = kBudget / num_stages - improve(counts);
    std::mt19937 random;
    while (left > 0) {
      std::vector<std::int64_t> tried = counts;
      const auto num_moves = static_cast<std::int64_t>(2 + random() % (kMostMoves - 1));
      for (std::int64_t i = 0; i < num_moves; ++i) {
        const std::size_t from = random() % num_stages;
        const std::size_t to = random() % num_stages;
        const std::int64_t layers = tried[from] > 0 ? 1 : 0;
        tried[from] -= layers;
        tried[to] += layers;
      }
      left -= std::max<std::int64_t>(improve(tried), 1);
      if (score(tried).is_better_than(score(counts))) {
        counts = tried;
      }
    }
  }

 private:
  StageCosts stage_costs_;
  StagePlacement placement_;
  std::int64_t num_ranks_;
};

// One layer after the other to the rank on which it makes the least load, there to the least stage;
// of equals to the last. Where all cost the same, no layout has a smaller largest rank.
std::vector<std::int64_t> deal_layers(const LayerCosts& costs,
                                      StagePlacement placement,
                                      std::int64_t num_ranks,
                                      std::int64_t num_stages) {
  double layer = 0;
  for (const double cost : costs.layers) {
    layer += cost / static_cast<double>(costs.layers.size());
  }
  std::vector<double> stages(at(num_stages), 0);
  stages.front() += costs.embedding;
  stages.back() += costs.head;
  std::vector<double> ranks(at(num_ranks), 0);
  for (std::int64_t s = 0; s < num_stages; ++s) {
    ranks[at(place_of(placement, num_ranks, s).rank)] += stages[at(s)];
  }
  std::vector<std::int64_t> counts(at(num_stages), 0);
  for (std::size_t i = 0; i < costs.layers.size(); ++i) {
    const auto least_rank = std::min_element(ranks.rbegin(), ranks.rend()).base() - 1;
    const std::int64_t rank = least_rank - ranks.begin();
    std::int64_t least = -1;
    for (std::int64_t s = num_stages - 1; s >= 0; --s) {
      if (place_of(placement, num_ranks, s).rank == rank &&
          (least < 0 || stages[at(s)] < stages[at(least)])) {
        least = s;
      }
    }
    ++counts[at(least)];
    stages[at(least)] += layer;
    *least_rank += layer;
  }
  return counts;
}

}  // namespace

std::string describe(const StageLayers& stage) {
  std::string result = stage.embedding ? "embedding" : "";
  const auto add = [&](const std::string& what) { result += (result.empty() ? "" : ", ") + what; };
  if (stage.layers.count > 0) {
    add(runs_of({stage.layers}));
  }
  if (stage.head) {
    add("head");
  }
  return result.empty() ? "nothing" : result;
}

StageLayout even_stages(std::int64_t num_layers, std::int64_t num_stages) {
  require(num_stages >= 1 && num_layers >= 1, "a model has layers, and a pipeline has stages");
  if (num_stages > num_layers) {
    throw ConfigError(fmt::format(
        "{} layers do not fill {} pipeline stages (each has one at least unless "
        "parallel.stages says otherwise); use {} stages or less, ranks times chunks, or "
        "write parallel.stages",
        num_layers,
        num_stages,
        num_layers));
  }
  std::vector<std::int64_t> counts(at(num_stages), num_layers / num_stages);
  for (std::int64_t s = 0; s < num_layers % num_stages; ++s) {
    ++counts[at(s)];
  }
  return make_layout(counts);
}

StageLayout stages_of_counts(std::int64_t num_layers, const std::vector<std::int64_t>& counts) {
  if (counts.empty()) {
    throw ConfigError(
        "parallel.stages has no stage (each entry is a stage); leave it out, or write "
        "the layers of each");
  }
  for (std::size_t s = 0; s < counts.size(); ++s) {
    // A number beyond the model's layers would not let itself be listed.
    if (counts[s] < 0 || counts[s] > num_layers) {
      throw ConfigError(
          fmt::format("parallel.stages gives stage {} {} layers (the model has {}); "
                      "use 0 to {}",
                      s,
                      counts[s],
                      num_layers,
                      num_layers));
    }
  }
  StageLayout result = make_layout(counts);
  require_complete(result, num_layers, static_cast<std::int64_t>(counts.size()));
  return result;
}

StageLayout stage_layout(const ModelConfig& model, const ParallelConfig& parallel) {
  const std::int64_t num_stages = pipeline_shape(parallel, 1).num_stages();
  if (parallel.stages.empty()) {
    return even_stages(model.num_layers, num_stages);
  }
  StageLayout layout = stages_of_counts(model.num_layers, parallel.stages);
  require_complete(layout, model.num_layers, num_stages);
  return layout;
}

void require_complete(const StageLayout& layout, std::int64_t num_layers, std::int64_t num_stages) {
  if (static_cast<std::int64_t>(layout.size()) != num_stages || layout.empty()) {
    throw ConfigError(
        fmt::format("parallel.stages has {} stages (there are {}, ranks times chunks); "
                    "write one entry for each",
                    layout.size(),
                    num_stages));
  }
  std::vector<std::int64_t> times(at(num_layers), 0);
  std::vector<std::string> problems;
  for (std::size_t s = 0; s < layout.size(); ++s) {
    const Range& layers = layout[s].layers;
    const Range known = intersection(layers, {.begin = 0, .count = num_layers});
    if (layers.count < 0 || (layers.count > 0 && known != layers)) {
      problems.push_back(fmt::format("stage {} has layers {} up to {}, and the model has {} layers",
                                     s,
                                     layers.begin,
                                     layers.end(),
                                     num_layers));
    }
    for (std::int64_t layer = known.begin; layer < known.end(); ++layer) {
      ++times[at(layer)];
    }
  }
  std::vector<Range> missing;
  std::vector<Range> doubled;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    if (times[at(layer)] != 1) {
      append(times[at(layer)] == 0 ? missing : doubled, layer);
    }
  }
  if (!missing.empty()) {
    problems.push_back(runs_of(missing) + " in no stage");
  }
  if (!doubled.empty()) {
    problems.push_back(runs_of(doubled) + " in more than one");
  }
  // Where each is there once, what begins before the stage before it is out of order.
  std::int64_t next = 0;
  for (std::size_t s = 0; problems.empty() && s < layout.size(); ++s) {
    if (layout[s].layers.count > 0) {
      if (layout[s].layers.begin != next) {
        problems.push_back(fmt::format(
            "stage {} with {} comes where layer {} is due", s, describe(layout[s]), next));
      }
      next = layout[s].layers.end();
    }
  }
  for (std::size_t s = 0; s < layout.size(); ++s) {
    if (layout[s].embedding != (s == 0)) {
      problems.push_back(
          fmt::format("stage {} {} the embedding", s, layout[s].embedding ? "has" : "is without"));
    }
    if (layout[s].head != (s + 1 == layout.size())) {
      problems.push_back(
          fmt::format("stage {} {} the head", s, layout[s].head ? "has" : "is without"));
    }
  }
  if (!problems.empty()) {
    throw ConfigError(
        fmt::format("parallel.stages is not the model: {} (stages follow the order of "
                    "the model, the embedding is in the first and the head in the "
                    "last); write each of the {} layers once",
                    fmt::join(problems, "; "),
                    num_layers));
  }
}

double cost_of(const StageLayers& stage, const LayerCosts& costs) {
  double result = (stage.embedding ? costs.embedding : 0) + (stage.head ? costs.head : 0);
  for (std::int64_t layer = stage.layers.begin; layer < stage.layers.end(); ++layer) {
    result += costs.layers[at(layer)];
  }
  return result;
}

std::vector<double> rank_costs(const StageLayout& layout,
                               const LayerCosts& costs,
                               StagePlacement placement,
                               std::int64_t num_ranks) {
  std::vector<double> result(at(num_ranks), 0);
  for (std::size_t s = 0; s < layout.size(); ++s) {
    result[at(place_of(placement, num_ranks, static_cast<std::int64_t>(s)).rank)] +=
        cost_of(layout[s], costs);
  }
  return result;
}

StageLayout balance_stages(const LayerCosts& costs, std::int64_t num_stages) {
  require_costs(costs, num_stages);
  const StageCosts stages(costs, num_stages);
  const auto num_layers = static_cast<std::int64_t>(costs.layers.size());
  const double largest = best_cut(
                             num_layers,
                             num_stages,
                             [&](std::int64_t s, std::int64_t begin, std::int64_t end) {
                               return stages.of(s, begin, end);
                             },
                             [](double a, double b) { return std::max(a, b); })
                             .first;
  const auto cut = best_cut(
      num_layers,
      num_stages,
      [&](std::int64_t s, std::int64_t begin, std::int64_t end) {
        const double cost = stages.of(s, begin, end);
        return cost > largest ? std::numeric_limits<double>::infinity() : cost * cost;
      },
      [](double a, double b) { return a + b; });
  return make_layout(cut.second);
}

StageLayout balance_ranks(const LayerCosts& costs,
                          StagePlacement placement,
                          std::int64_t num_ranks,
                          std::int64_t num_chunks) {
  require(
      num_ranks >= 1 && num_chunks >= 1 && (placement == StagePlacement::loop || num_chunks == 2),
      fmt::format("{} ranks have no {} chunks each in this placement", num_ranks, num_chunks));
  const std::int64_t num_stages = num_ranks * num_chunks;
  require_costs(costs, num_stages);
  StageLayout by_stage = balance_stages(costs, num_stages);
  if (num_chunks == 1) {
    return by_stage;
  }
  std::vector<std::int64_t> dealt = deal_layers(costs, placement, num_ranks, num_stages);
  const bool all_alike =
      std::adjacent_find(costs.layers.begin(), costs.layers.end(), std::not_equal_to<>()) ==
      costs.layers.end();
  if (all_alike) {
    return make_layout(dealt);
  }
  std::vector<std::int64_t> counts;
  for (const StageLayers& stage : by_stage) {
    counts.push_back(stage.layers.count);
  }
  const RankBalance balance(costs, placement, num_ranks, num_chunks);
  balance.search(dealt);
  balance.improve(counts);
  return make_layout(balance.score(dealt).is_better_than(balance.score(counts)) ? dealt : counts);
}

}  // namespace memphis
