// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/ways_to_fit.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <variant>

#include <spdlog/fmt/fmt.h>

#include "csrc/config/load.h"
#include "csrc/config/schema.h"
#include "csrc/core/error.h"
#include "csrc/plan/memory.h"
#include "csrc/plan/mesh.h"

namespace memphis {
namespace {

constexpr std::size_t kMostWays = 3;

using Change = std::function<void(Config&)>;

// A key and the values that are tried for it.
struct Knob {
  std::vector<Change> values;
  std::string risk = {};
};

Change raise_degree(std::int64_t ParallelConfig::*degree, std::int64_t factor) {
  return [=](Config& config) {
    config.parallel.*degree *= factor;
    config.parallel.data = 0;  // what the others leave
  };
}

Change raise_pipeline(std::int64_t factor) {
  return [=](Config& config) {
    config.parallel.pipeline *= factor;
    config.parallel.data = 0;
    config.parallel.stages.clear();
  };
}

Knob degree_knob(std::int64_t ParallelConfig::*degree) {
  return {.values = {raise_degree(degree, 2), raise_degree(degree, 4)}};
}

// Sequences whose pieces are still enough work for a rank.
bool is_long(const Config& config) {
  constexpr std::int64_t kLongSequence = 16384;
  return config.batch.sequence_length >= kLongSequence;
}

Knob pipeline_knob() {
  return {.values = {raise_pipeline(2), raise_pipeline(4), raise_pipeline(8)}};
}

// The largest that a config may say, which the schema knows.
std::int64_t largest_zero(Config config) {
  for (const Field& field : fields_of(config)) {
    if (field.path() == "parallel.zero") {
      return std::get<Integer>(field.target).high;
    }
  }
  return config.parallel.zero;
}

std::vector<Knob> knobs_of(const Config& config) {
  std::vector<Knob> knobs;
  if (!config.memory.recompute_auto) {
    knobs.push_back({.values = {[](Config& changed) {
                       changed.memory.recompute_auto = true;
                       changed.memory.recompute = {};
                       changed.memory.recompute_layers = 0;
                     }}});
  }
  Knob micro_batch;
  for (std::int64_t size = config.batch.micro_batch; size > 1;) {
    size = size % 2 == 0 ? size / 2 : 1;
    micro_batch.values.push_back([=](Config& changed) { changed.batch.micro_batch = size; });
  }
  knobs.push_back(std::move(micro_batch));
  Knob head{.values = {}, .risk = "the gradient of the head's weight waits for a GPU's memory"};
  for (const std::int64_t rows : {2048, 1024}) {
    if (config.memory.head_rows == 0 || rows < config.memory.head_rows) {
      head.values.push_back([=](Config& changed) { changed.memory.head_rows = rows; });
    }
  }
  knobs.push_back(std::move(head));
  Knob zero;
  for (std::int64_t level = config.parallel.zero + 1; level <= largest_zero(config); ++level) {
    zero.values.push_back([=](Config& changed) { changed.parallel.zero = level; });
  }
  knobs.push_back(std::move(zero));
  knobs.push_back(degree_knob(&ParallelConfig::tensor));
  knobs.push_back(degree_knob(&ParallelConfig::expert));
  knobs.push_back(degree_knob(&ParallelConfig::expert_tensor));
  if (is_long(config)) {
    knobs.push_back(degree_knob(&ParallelConfig::context));
  }
  knobs.push_back(pipeline_knob());
  if (config.parallel.overlap_experts == OverlapChoice::required) {
    knobs.push_back({.values = {[](Config& changed) {
                       changed.parallel.overlap_experts = OverlapChoice::automatic;
                     }}});
  }
  if (config.parallel.expert_buffer == 0) {
    Knob buffer{.values = {}, .risk = "a micro-batch that routes more to one rank ends the run"};
    for (const double shares : {2.0, 1.5}) {
      buffer.values.push_back([=](Config& changed) { changed.parallel.expert_buffer = shares; });
    }
    knobs.push_back(std::move(buffer));
  }
  std::erase_if(knobs, [](const Knob& knob) { return knob.values.empty(); });
  return knobs;
}

class Search {
 public:
  Search(const Config& given, DType compute, const DeviceRoom& room)
      : given_(given), compute_(compute), room_(room) {}

  // Nothing where no such config is valid.
  // The cost of what does not fit is asked for of a few alone.
  enum class Priced : bool { if_it_fits = false, always = true };
  std::optional<WayToFit> plan(const Config& changed,
                               std::int64_t num_ranks,
                               Priced priced = Priced::if_it_fits) const {
    WayToFit way;
    way.num_ranks = num_ranks;
    try {
      way.config = parse_config(to_yaml(changed), "config", {}, Check::text, num_ranks);
      const Config least = computing_most_again(way.config);
      const Mesh mesh(way.config.parallel, num_ranks);
      StagePlans plans = plan_all_stages(least, compute_, room_, mesh);
      if (way.config.memory.recompute_auto && most_of(plans) <= room_.budget_bytes) {
        plans = plan_all_stages(way.config, compute_, room_, mesh);
      }
      way.bytes = most_of(plans);
      if (priced == Priced::always || fits(way)) {
        way.cost = step_cost(way.config, compute_, mesh, plans);
      }
    } catch (const ConfigError&) {
      return std::nullopt;
    }
    way.overrides = overrides_between(given_, way.config);
    return way;
  }

  std::optional<WayToFit> plan(const std::vector<const Change*>& changes,
                               std::int64_t num_ranks) const {
    Config changed = given_;
    for (const Change* change : changes) {
      (*change)(changed);
    }
    return plan(changed, num_ranks);
  }

  bool fits(const WayToFit& way) const { return way.bytes <= room_.budget_bytes; }

  const Config& given() const { return given_; }

 private:
  static std::size_t most_of(const StagePlans& plans) {
    return *std::max_element(plans.bytes.begin(), plans.bytes.end());
  }

  const Config& given_;
  DType compute_;
  const DeviceRoom& room_;
};

// The best so far of those that fit, and of all the one that needs least.
struct Best {
  std::optional<WayToFit> cheapest;
  std::optional<WayToFit> smallest;

  void add(WayToFit way, bool fits) {
    if (fits && (!cheapest || way.cost.price < cheapest->cost.price)) {
      cheapest = way;
    }
    if (!smallest || way.bytes < smallest->bytes) {
      smallest = std::move(way);
    }
  }
};

// One knob, at each of its values.
struct Turned {
  const Knob* knob;
  std::size_t strongest = 0;  // the value that needs least
  bool valid = false;
  bool fits = false;
};

Turned turn(const Search& search, const Knob& knob, std::int64_t num_ranks, Best& best) {
  Turned turned{.knob = &knob};
  std::size_t least = 0;
  for (std::size_t i = 0; i < knob.values.size(); ++i) {
    std::optional<WayToFit> way = search.plan({&knob.values[i]}, num_ranks);
    if (!way) {
      continue;
    }
    if (!turned.valid || way->bytes < least) {
      turned.strongest = i;
      least = way->bytes;
    }
    turned.valid = true;
    const bool fits = search.fits(*way);
    turned.fits = turned.fits || fits;
    way->risk = knob.risk;
    best.add(std::move(*way), fits);
  }
  return turned;
}

// Two knobs that do not do it alone. Where their strongest values do not do it together, no others
// are tried.
void turn_both(
    const Search& search, const Turned& a, const Turned& b, std::int64_t num_ranks, Best& best) {
  const auto try_values = [&](std::size_t i, std::size_t j) {
    std::optional<WayToFit> way = search.plan({&a.knob->values[i], &b.knob->values[j]}, num_ranks);
    const bool fits = way && search.fits(*way);
    if (way) {
      way->risk = a.knob->risk + b.knob->risk;  // one of them has none
      best.add(std::move(*way), fits);
    }
    return fits;
  };
  if (!try_values(a.strongest, b.strongest)) {
    return;
  }
  for (std::size_t i = 0; i < a.knob->values.size(); ++i) {
    for (std::size_t j = 0; j < b.knob->values.size(); ++j) {
      if (i != a.strongest || j != b.strongest) {
        try_values(i, j);
      }
    }
  }
}

constexpr std::int64_t kMostTimesTheRanks = 1024;

// What may become of a config on `times` as many ranks: as it is, a degree raised by as much or less,
// two degrees that take all of it between them, and each of these with the most shared out. On very
// many more ranks, as it is and with one degree raised by as much: the user has to think again.
constexpr std::int64_t kTimesWithAllChanges = 16;

std::vector<std::vector<Change>> changes_for(const Config& config, std::int64_t times) {
  std::vector<std::function<Change(std::int64_t)>> degrees = {
      [](std::int64_t factor) { return raise_degree(&ParallelConfig::tensor, factor); },
      [](std::int64_t factor) { return raise_degree(&ParallelConfig::expert, factor); },
      [](std::int64_t factor) { return raise_degree(&ParallelConfig::expert_tensor, factor); },
      raise_pipeline};
  if (is_long(config)) {
    degrees.push_back(
        [](std::int64_t factor) { return raise_degree(&ParallelConfig::context, factor); });
  }
  std::vector<std::vector<Change>> result = {{[](Config& changed) { changed.parallel.data = 0; }}};
  for (std::size_t i = 0; i < degrees.size(); ++i) {
    for (std::int64_t factor = times > kTimesWithAllChanges ? times : 2; factor <= times;
         factor *= 2) {
      result.push_back({degrees[i](factor)});
      for (std::size_t j = 0; j < i && factor < times; ++j) {
        result.push_back({degrees[i](factor), degrees[j](times / factor)});
      }
    }
  }
  const std::int64_t zero = largest_zero(config);
  const bool shares_more = zero > config.parallel.zero && times <= kTimesWithAllChanges;
  const std::size_t count = shares_more ? result.size() : 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<Change> shared = result[i];
    shared.push_back([=](Config& changed) { changed.parallel.zero = zero; });
    result.push_back(std::move(shared));
  }
  return result;
}

// The least power of two times as many ranks on which there is a way.
std::optional<WayToFit> more_ranks(const Search& search, std::int64_t num_ranks) {
  for (std::int64_t times = 2; times <= kMostTimesTheRanks; times *= 2) {
    Best best;
    for (const std::vector<Change>& changes : changes_for(search.given(), times)) {
      std::vector<const Change*> together;
      for (const Change& change : changes) {
        together.push_back(&change);
      }
      if (std::optional<WayToFit> way = search.plan(together, times * num_ranks)) {
        const bool fits = search.fits(*way);
        best.add(std::move(*way), fits);
      }
    }
    if (best.cheapest) {
      return best.cheapest;
    }
  }
  return std::nullopt;
}

std::optional<WayToFit> shorter_sequences(const Search& search, std::int64_t num_ranks) {
  for (std::int64_t length = search.given().batch.sequence_length; length % 2 == 0;) {
    length /= 2;
    const Change change = [=](Config& config) { config.batch.sequence_length = length; };
    std::optional<WayToFit> way = search.plan({&change}, num_ranks);
    if (way && search.fits(*way)) {
      way->risk = "the model learns of shorter texts";
      return way;
    }
  }
  return std::nullopt;
}

std::string line_of(const WayToFit& way, std::int64_t num_ranks) {
  std::string change = fmt::format("{}", fmt::join(way.overrides, " "));
  if (way.num_ranks != num_ranks) {
    change = fmt::format(
        "{} ranks with as much memory each{}{}", way.num_ranks, change.empty() ? "" : ", ", change);
  }
  return fmt::format("  {}\n      {}; {}{}\n",
                     change.empty() ? "the config as it is" : change,
                     human_bytes(way.bytes),
                     describe(way.cost),
                     way.risk.empty() ? "" : "; " + way.risk);
}

}  // namespace

WaysToFit ways_to_fit(const Config& config,
                      DType compute,
                      const DeviceRoom& room,
                      std::int64_t num_ranks) {
  WaysToFit result;
  const Search search(config, compute, room);
  std::optional<WayToFit> given = search.plan(config, num_ranks, Search::Priced::always);
  if (!given || search.fits(*given)) {
    return result;
  }
  result.given = given->cost;
  std::optional<WayToFit> smallest = std::move(given);
  const auto take = [&](Best& best) {
    if (best.cheapest) {
      result.ways.push_back(std::move(*best.cheapest));
    }
    if (best.smallest && best.smallest->bytes < smallest->bytes) {
      smallest = std::move(best.smallest);
    }
  };

  const std::vector<Knob> knobs = knobs_of(config);
  std::vector<Turned> not_alone;
  for (const Knob& knob : knobs) {
    Best best;
    const Turned turned = turn(search, knob, num_ranks, best);
    take(best);
    if (turned.valid && !turned.fits) {
      not_alone.push_back(turned);
    }
  }
  for (std::size_t a = 0; a < not_alone.size(); ++a) {
    for (std::size_t b = a + 1; b < not_alone.size(); ++b) {
      Best best;
      turn_both(search, not_alone[a], not_alone[b], num_ranks, best);
      take(best);
    }
  }
  std::stable_sort(result.ways.begin(), result.ways.end(), [](const auto& a, const auto& b) {
    return a.cost.price < b.cost.price;
  });
  if (result.ways.size() > kMostWays) {
    result.ways.resize(kMostWays);
  }
  if (result.ways.empty()) {
    result.smallest = search.plan(smallest->config, num_ranks, Search::Priced::always);
    result.smallest->risk = smallest->risk;
  }
  if (result.ways.size() < kMostWays) {
    if (std::optional<WayToFit> way = more_ranks(search, num_ranks)) {
      result.ways.push_back(std::move(*way));
    }
  }
  if (!result.ways.empty() && result.ways.size() < kMostWays) {
    if (std::optional<WayToFit> way = shorter_sequences(search, num_ranks)) {
      result.ways.push_back(std::move(*way));
    }
  }
  return result;
}

std::string describe(const WaysToFit& ways, std::int64_t num_ranks) {
  std::string text;
  if (ways.smallest) {
    text += fmt::format("nothing that was tried on {} makes it fit; what needs least is\n{}",
                        num_ranks == 1 ? "1 rank" : fmt::format("{} ranks", num_ranks),
                        line_of(*ways.smallest, num_ranks));
  }
  if (ways.ways.empty()) {
    return text.empty()
               ? text
               : text + fmt::format("nor was a way found on up to {} times as many ranks\n",
                                    kMostTimesTheRanks);
  }
  text += fmt::format(
      "what makes it fit, the cheapest first, in place of the config's values; a step now has {}\n",
      describe(ways.given));
  for (const WayToFit& way : ways.ways) {
    text += line_of(way, num_ranks);
  }
  return text;
}

}  // namespace memphis
