// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/step_time.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/plan/schedule_simulation.h"

namespace memphis {
namespace {

// Kernels of attention over the rate of large products, of which they are made: 602 and 450 TFLOP/s
// of FlashAttention-3, forward and backward, and 333 and 300 of FlashAttention-2, over 794.5 (Shah
// et al., arXiv:2407.08608; figures in Dao-AILab/flash-attention).
constexpr double kForwardScores = 602 / 794.5;
constexpr double kBackwardScores = 450 / 794.5;
constexpr double kOlderForwardScores = 333 / 794.5;
constexpr double kOlderBackwardScores = 300 / 794.5;
// Five products where the forward pass has two.
constexpr double kBackwardOverForwardScores = 2.5;
// AdamW reads a gradient, the weight's master and two moments, and writes three of them and the
// weight.
constexpr double kUpdateBytes = 30;
// The tile of a product that a multiprocessor works on at a time.
constexpr double kTileRows = 128;
constexpr double kTileColumns = 256;

// Heads that are narrower than those that kernels of attention were measured on have as many
// exponentials for less work: FlashAttention-3 loses a quarter at half the width.
constexpr double kMeasuredHead = 128;

using Parts = std::array<double, kNumParts>;

double& at(Parts& parts, StepPart part) {
  return parts[static_cast<std::size_t>(part)];
}
double sum(const Parts& parts) {
  double total = 0;
  for (const double each : parts) {
    total += each;
  }
  return total;
}
void add(Parts& to, const Parts& from, double times = 1) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i] += times * from[i];
  }
}

double large_rate(Products kind, const Machine& machine) {
  switch (kind) {
    case Products::f32:
      return machine.large_f32_tflops * 1e12;
    case Products::bf16:
      return machine.large_bf16_tflops * 1e12;
    case Products::fp8:
      return machine.large_fp8_tflops * 1e12;
  }
  return 0;
}
double peak_rate(Products kind, const Machine& machine) {
  switch (kind) {
    case Products::f32:
      return machine.peak_f32_tflops * 1e12;
    case Products::bf16:
      return machine.peak_bf16_tflops * 1e12;
    case Products::fp8:
      return machine.peak_fp8_tflops * 1e12;
  }
  return 0;
}

// Of the large rate, from the machine's table.
double measured_share(double flops, const Machine& machine) {
  const auto& sizes = machine.measured_gflop;
  const auto& rates = machine.measured_per_mille;
  const double size = flops / 1e9;
  const auto above = std::upper_bound(sizes.begin(), sizes.end(), size, [](double a, auto b) {
    return a < static_cast<double>(b);
  });
  const auto i = static_cast<std::size_t>(above - sizes.begin());
  if (i == 0) {
    return static_cast<double>(rates.front()) / 1000;
  }
  if (i == sizes.size()) {
    return static_cast<double>(rates.back()) / 1000;
  }
  const auto low = static_cast<double>(sizes[i - 1]);
  const auto high = static_cast<double>(sizes[i]);
  const double part = (size - low) / (high - low);
  return ((1 - part) * static_cast<double>(rates[i - 1]) + part * static_cast<double>(rates[i])) /
         1000;
}

// Of the multiprocessors' time, what has tiles, the last round not full.
double share_of_rounds(const Product& product, const Machine& machine) {
  if (machine.multiprocessors == 0) {
    return 1;
  }
  const auto units = static_cast<double>(machine.multiprocessors);
  const double rows = std::ceil(product.M / kTileRows);
  const double columns = std::ceil(product.N / kTileColumns);
  const double tiles = rows * columns * (product.together ? std::max(product.count, 1.0) : 1);
  const double filled =
      product.M * product.N / (rows * kTileRows * columns * kTileColumns);  // of the tiles
  return filled * tiles / (units * std::ceil(tiles / units));
}

struct Placed {
  double in_node = 1;  // of the group, on one node
  double per_second = 0;
  double rows_per_second = 0;
  double latency = 0;         // seconds
  double far_per_second = 0;  // of one link between nodes
};
Placed place(const RankGroup& group, const Machine& machine) {
  Placed placed;
  const auto node = static_cast<double>(machine.node.ranks);
  const auto stride = static_cast<double>(group.stride);
  const auto count = static_cast<double>(group.count);
  placed.in_node = std::clamp(std::floor(node / stride), 1.0, count);
  if (placed.in_node >= count && stride * (count - 1) < node) {
    return {.in_node = count,
            .per_second = machine.node.gb_per_second * 1e9,
            .rows_per_second = machine.node.rows_gb_per_second * 1e9,
            .latency = machine.node.latency_us * 1e-6,
            .far_per_second = 0};
  }
  const bool in_pod = stride * count <= static_cast<double>(machine.pod.ranks);
  const LinkLevel& far = in_pod ? machine.pod : machine.cluster;
  // All links of a node carry a ring that passes each node once.
  placed.per_second =
      std::min(machine.node.gb_per_second, placed.in_node * far.gb_per_second) * 1e9;
  placed.rows_per_second = far.rows_gb_per_second * 1e9;
  placed.far_per_second = far.gb_per_second * 1e9;
  placed.latency = far.latency_us * 1e-6;
  return placed;
}

double rows_seconds(const Exchange& exchange, const Machine& machine) {
  const auto count = static_cast<double>(exchange.group.count);
  const Placed placed = place(exchange.group, machine);
  const double near_rate = machine.node.rows_gb_per_second * 1e9;
  // Rows for one node are one stream.
  const double far_rate =
      exchange.tokens_bytes > 0 ? placed.far_per_second : placed.rows_per_second;
  double near = exchange.bytes * (placed.in_node - 1) / count;
  double far = exchange.bytes * (count - placed.in_node) / count;
  if (exchange.tokens_bytes > 0) {
    // Ranks, or nodes, that at least one of a token's choices lies on, if all are as likely.
    const auto met = [&](double places) {
      return places * (1 - std::pow(1 - 1 / places, exchange.choices));
    };
    const double nodes = count / placed.in_node;
    const double met_nodes =
        exchange.most_nodes > 0 ? std::min(met(nodes), exchange.most_nodes) : met(nodes);
    far = exchange.tokens_bytes * met_nodes * (nodes - 1) / nodes;
    near = exchange.tokens_bytes * met(count) * (placed.in_node - 1) / placed.in_node;
  }
  return std::max(near / near_rate, placed.in_node < count ? far / far_rate : 0) +
         placed.latency * std::log2(count);
}

class Pricer {
 public:
  Pricer(const RunWork& work, const Machine& machine, const TimeConstants& constants)
      : work_(work), t_(work.run.techniques), machine_(machine), c_(constants) {
    require_rate(t_.products);
  }

  enum class Pass : std::uint8_t { forward, backward };

  Parts of(const PassWork& pass, Pass which) const {
    Parts parts = {};
    const ModelShape& model = work_.run.model;
    // A rank that has all experts has all rows, whatever the router chooses.
    const double imbalance =
        t_.routed && model.num_experts > 0 && work_.run.parallel.expert > 1
            ? 1 + c_.imbalance * (static_cast<double>(model.num_experts) /
                                      static_cast<double>(model.experts_per_token) -
                                  1)
            : 1;
    for (const Product& product : pass.products) {
      const double seconds = product_seconds(product, t_.products, machine_, c_);
      if (product.of_experts) {
        at(parts, StepPart::expert_products) += imbalance * seconds;
      } else {
        at(parts, StepPart::products) += seconds;
      }
    }
    at(parts, StepPart::attention) = attention_seconds(pass.scores, which);
    at(parts, StepPart::streams) =
        pass.streams * (t_.eager ? c_.eager_streams : 1) / machine_.bytes_per_second();
    at(parts, StepPart::starts) = pass.starts * c_.start_seconds;
    double weights = 0;
    double beside = 0;
    for (const Exchange& exchange : pass.exchanges) {
      const double seconds = exchange_seconds(exchange, machine_);
      if (exchange.beside) {
        beside += seconds;
        continue;
      }
      switch (exchange.kind) {
        case ExchangeKind::tensor:
          at(parts, StepPart::tensor) += t_.tensor_overlap ? c_.tensor_seen * seconds : seconds;
          break;
        case ExchangeKind::pieces:
          at(parts, StepPart::tensor) += c_.pieces * seconds;
          break;
        case ExchangeKind::rows:
          at(parts, StepPart::rows) +=
              imbalance * (t_.expert_overlap ? c_.rows_seen * seconds : seconds);
          break;
        case ExchangeKind::context:
          at(parts, StepPart::context) +=
              t_.context_overlap ? std::max(seconds - at(parts, StepPart::attention), 0.0)
                                 : seconds;
          break;
        case ExchangeKind::weights:
          weights += seconds;
          break;
        case ExchangeKind::numbers:
          at(parts, StepPart::starts) += seconds;
          break;
      }
    }
    // What is longer than all that a pass multiplies is seen.
    at(parts, StepPart::tensor) +=
        std::max(beside - at(parts, StepPart::products) - at(parts, StepPart::attention), 0.0);
    // Travel beside the whole pass, of the layer before or behind.
    at(parts, StepPart::weights) = std::max(weights - sum(parts), 0.0);
    return parts;
  }

  // Of a step; a stage's passes.
  struct Costs {
    Parts forward = {};
    Parts inputs = {};
    Parts weights = {};
  };
  Costs of_layer(const LayerWork& layer) const {
    Costs costs{.forward = of(layer.forward, Pass::forward),
                .inputs = of(layer.backward_inputs, Pass::backward),
                .weights = of(layer.backward_weights, Pass::backward)};
    at(costs.inputs, StepPart::again) = sum(of(layer.again, Pass::forward));
    return costs;
  }

 private:
  void require_rate(Products kind) const {
    if (large_rate(kind, machine_) == 0) {
      const char* name = kind == Products::f32 ? "f32" : kind == Products::bf16 ? "bf16" : "fp8";
      throw ConfigError(
          fmt::format("{} has no products in {} (products.large_{}_tflops is 0); use another "
                      "--machine or precision.compute",
                      machine_.name,
                      name,
                      name));
    }
  }
  double attention_seconds(double flops, Pass which) const {
    const bool forward = which == Pass::forward;
    // Scores stay in 16 bits where products are in 8.
    const Products kind = t_.products == Products::f32 ? Products::f32 : Products::bf16;
    const double rate = c_.attention * large_rate(kind, machine_) *
                        (t_.older_attention ? (forward ? kOlderForwardScores : kOlderBackwardScores)
                                            : (forward ? kForwardScores : kBackwardScores));
    const double narrow =
        std::sqrt(std::min(static_cast<double>(work_.run.model.head_dim) / kMeasuredHead, 1.0));
    return (forward ? 1 : kBackwardOverForwardScores) * flops / (rate * narrow);
  }

  const RunWork& work_;
  const Techniques& t_;
  const Machine& machine_;
  const TimeConstants& c_;
};

// Of reductions or gathers, what a pass of a micro-batch does not cover.
double seen(const std::vector<Exchange>& exchanges,
            const Machine& machine,
            double covered,
            bool overlaps) {
  double seconds = 0;
  for (const Exchange& exchange : exchanges) {
    seconds += exchange_seconds(exchange, machine);
  }
  return overlaps ? std::max(seconds - covered, 0.0) : seconds;
}

}  // namespace

std::array<double*, TimeConstants::count> TimeConstants::values() {
  return {&dense_products,
          &fp8_products,
          &fp8_expert_products,
          &attention,
          &eager_streams,
          &tensor_seen,
          &rows_seen,
          &pieces,
          &start_seconds,
          &imbalance,
          &straggling};
}

const std::array<const char*, TimeConstants::count>& TimeConstants::names() {
  static const std::array<const char*, count> names = {"dense_products",
                                                       "fp8_products",
                                                       "fp8_expert_products",
                                                       "attention",
                                                       "eager_streams",
                                                       "tensor_seen",
                                                       "rows_seen",
                                                       "pieces",
                                                       "start_seconds",
                                                       "imbalance",
                                                       "straggling"};
  return names;
}

std::string_view name_of(StepPart part) {
  switch (part) {
    case StepPart::products:
      return "products";
    case StepPart::expert_products:
      return "products of experts";
    case StepPart::attention:
      return "attention";
    case StepPart::streams:
      return "between products";
    case StepPart::starts:
      return "starts of experts";
    case StepPart::again:
      return "computed again";
    case StepPart::tensor:
      return "tensor exchanges";
    case StepPart::rows:
      return "rows to experts";
    case StepPart::context:
      return "keys and values";
    case StepPart::weights:
      return "gathers of weights";
    case StepPart::pipeline:
      return "pipeline";
    case StepPart::data:
      return "replicas";
    case StepPart::optimizer:
      return "optimizer";
    case StepPart::straggling:
      return "slowest rank";
  }
  return "";
}

StepPart StepTime::binding() const {
  return static_cast<StepPart>(std::max_element(parts.begin(), parts.end()) - parts.begin());
}

double product_seconds(const Product& product,
                       Products kind,
                       const Machine& machine,
                       const TimeConstants& constants) {
  const Products own = kind == Products::fp8 && !product.in_fp8 ? Products::bf16 : kind;
  const double share = own != Products::fp8 ? constants.dense_products
                       : product.of_experts ? constants.fp8_expert_products
                                            : constants.fp8_products;
  const double rate = large_rate(own, machine) * share;
  if (!machine.measured_gflop.empty()) {
    return product.flops() / (rate * measured_share(product.flops() / product.count, machine));
  }
  const double operand_bytes = own == Products::f32 ? 4 : own == Products::fp8 ? 1 : 2;
  const double bytes = product.count * (operand_bytes * product.K * (product.M + product.N) +
                                        product.result_bytes * product.M * product.N);
  // A product's memory is busy while it computes.
  return std::hypot(product.flops() / (rate * share_of_rounds(product, machine)),
                    bytes / machine.bytes_per_second());
}

double exchange_seconds(const Exchange& exchange, const Machine& machine) {
  const auto count = static_cast<double>(exchange.group.count);
  if (count <= 1) {
    return 0;
  }
  if (exchange.pattern == Pattern::all_to_all) {
    return rows_seconds(exchange, machine);
  }
  const Placed placed = place(exchange.group, machine);
  const double others = (count - 1) / count;
  const double once = exchange.bytes * others / placed.per_second;
  // A ring within a node, a tree among nodes.
  const double nodes = count / placed.in_node;
  const double hops = (placed.in_node - 1) * machine.node.latency_us * 1e-6 +
                      (nodes > 1 ? 2 * std::log2(nodes) * placed.latency : 0);
  switch (exchange.pattern) {
    case Pattern::all_reduce:
      return 2 * (once + hops);
    case Pattern::broadcast:
      return exchange.bytes / placed.per_second + hops;
    default:
      return once + hops;
  }
}

StepTime step_time(const RunWork& work,
                   const Machine& machine,
                   const TimeConstants& constants,
                   double slowest) {
  const Pricer pricer(work, machine, constants);
  const RunDescription& run = work.run;
  std::vector<Pricer::Costs> kinds;
  for (const LayerWork& kind : work.kinds) {
    kinds.push_back(pricer.of_layer(kind));
  }
  Pricer::Costs head = pricer.of_layer(work.head);
  // Extra predictions have a head each, and all of them are in the last stage.
  const auto heads = static_cast<double>(1 + run.model.predicted_layers);

  const PipelineShape& shape = work.schedule.shape;
  const auto micro_batches = static_cast<double>(shape.num_micro_batches);
  PipelineCosts costs;
  std::vector<Parts> ranks(static_cast<std::size_t>(shape.num_ranks));
  std::vector<std::pair<double, double>> passes(ranks.size());  // of all chunks of a rank
  for (std::int64_t s = 0; s < shape.num_stages(); ++s) {
    const StageLayers& stage = work.layout[static_cast<std::size_t>(s)];
    Pricer::Costs of_stage;
    const auto take = [&](const Pricer::Costs& layer, double times) {
      add(of_stage.forward, layer.forward, times);
      add(of_stage.inputs, layer.inputs, times);
      add(of_stage.weights, layer.weights, times);
    };
    for (std::int64_t layer = stage.layers.begin; layer < stage.layers.end(); ++layer) {
      take(kinds[work.kind_of_layer[static_cast<std::size_t>(layer)]], 1);
    }
    if (stage.head) {
      take(head, heads);
    }
    costs.stages.push_back({.forward = sum(of_stage.forward),
                            .backward_inputs = sum(of_stage.inputs),
                            .backward_weights = sum(of_stage.weights)});
    const auto rank = static_cast<std::size_t>(shape.place_of(s).rank);
    for (const Parts* parts : {&of_stage.forward, &of_stage.inputs, &of_stage.weights}) {
      add(ranks[rank], *parts, micro_batches);
    }
    passes[rank].first += costs.stages.back().forward;
    passes[rank].second +=
        costs.stages.back().backward_inputs + costs.stages.back().backward_weights;
  }
  std::size_t busiest = 0;
  for (std::size_t rank = 1; rank < ranks.size(); ++rank) {
    if (sum(ranks[rank]) > sum(ranks[busiest])) {
      busiest = rank;
    }
  }

  for (double& part : ranks[busiest]) {
    part /= slowest;
  }
  for (std::int64_t s = 0; s < shape.num_stages(); ++s) {
    if (static_cast<std::size_t>(shape.place_of(s).rank) == busiest) {
      StageCost& cost = costs.stages[static_cast<std::size_t>(s)];
      cost.forward /= slowest;
      cost.backward_inputs /= slowest;
      cost.backward_weights /= slowest;
    }
  }
  StepTime time;
  time.parts = ranks[busiest];
  const double busy = sum(time.parts);
  double makespan = busy;
  if (shape.num_stages() > 1 && !work.schedule.ranks.empty()) {
    const Placed placed = place(work.message_group, machine);
    costs.message = {.latency = placed.latency,
                     .bytes = work.message_bytes,
                     .bytes_per_second = placed.per_second,
                     .overlapped = run.techniques.message_overlap};
    makespan = simulate(work.schedule, costs).makespan;
  }
  time.of(StepPart::pipeline) = makespan - busy;
  const Techniques& t = run.techniques;
  time.of(StepPart::data) = seen(work.reductions, machine, passes[busiest].second, t.data_overlap) +
                            seen(work.gathers, machine, passes[busiest].first, t.data_overlap);
  time.of(StepPart::optimizer) = work.updated_elements * kUpdateBytes / machine.bytes_per_second();
  time.of(StepPart::straggling) =
      makespan * constants.straggling *
      std::log2(static_cast<double>(run.num_ranks) /
                static_cast<double>(run.parallel.pipeline * run.parallel.tensor));
  time.seconds = sum(time.parts);

  const DescribedFlops flops = flops_per_token(run.model, run.batch.sequence_length);
  time.tokens_per_second_of_rank =
      run.step_tokens() / time.seconds / static_cast<double>(run.num_ranks);
  const double peak = peak_rate(t.products, machine);
  time.model_tflops = flops.halved * time.tokens_per_second_of_rank / 1e12;
  time.mfu = flops.halved * time.tokens_per_second_of_rank / peak;
  time.unhalved_mfu = flops.unhalved * time.tokens_per_second_of_rank / peak;
  return time;
}

}  // namespace memphis
