// SPDX-License-Identifier: Apache-2.0
#include "tests/support/departure.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/plan/share.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

constexpr double kAgrees = 1e-12;  // over the largest magnitude of the tensor
constexpr std::size_t kNumListed = 6;

// Brings the results of one rank's last micro-batch to logical form.
class Collector {
 public:
  explicit Collector(RankRun& run)
      : run_(run),
        dims_(run.trainer().plan().dims),
        share_(run.trainer().plan().share),
        model_(run.config().model),
        num_tokens_(run.config().batch.global_batch * dims_.S) {
    const SampleShare samples(run.config().batch, share_);
    for (std::int64_t b = 0; b < dims_.B; ++b) {
      sequences_.push_back(samples.place(samples.num_sequences() - dims_.B + b));
    }
    q_heads_ = share_.tensor.of(model_.num_heads);
    kv_heads_ = kv_share(model_, share_).heads;
  }

  std::vector<OpResult> collect() {
    const ActivationPlan& plan = run_.trainer().plan().activations;
    batch_of(
        [](const StageLayers& stage) { return stage.embedding; },
        [&](const BatchActivations<TensorView>& batch) { residual("embedding", batch.hidden_TD); });
    LayerActivations<TensorView> elsewhere;
    LayerActivations<LayerTensor>::for_each(
        plan.layer, elsewhere, [&](const LayerTensor& tensor, TensorView& view) {
          view = shape_of(tensor.spec);
        });
    for (std::int64_t i = 0; i < model_.num_layers; ++i) {
      const Slot* const slot = slot_with([&](const StageLayers& stage) {
        return i >= stage.layers.begin && i < stage.layers.end();
      });
      is_here_ = slot != nullptr;
      layer(fmt::format("layer {} ", i),
            is_here_ ? slot->layers[static_cast<std::size_t>(i - slot->stage.layers.begin)]
                     : elsewhere);
    }
    batch_of([](const StageLayers& stage) { return stage.head; },
             [&](const BatchActivations<TensorView>& batch) {
               residual("final_in", batch.final_in_TD);
               residual("final_in_rrms", batch.final_rrms_T);
               whole("loss", batch.loss_T, 1, {{0, 0, 1}});
             });
    return std::move(results_);
  }

 private:
  static TensorView shape_of(const TensorSpec& spec) {
    return spec.present() ? TensorView(nullptr, spec, Device::cpu) : TensorView{};
  }

  // The last micro-batch in the stage that `is_it` is true for; null where another rank has it.
  template <class IsIt>
  const Slot* slot_with(const IsIt& is_it) const {
    const TrainingPlan& plan = run_.trainer().plan();
    const std::vector<ChunkActivations>& chunks = plan.activations.chunks;
    for (std::size_t chunk = 0; chunk < chunks.size(); ++chunk) {
      if (is_it(chunks[chunk].stage)) {
        return &run_.trainer().activations().slots[plan.activations.slot_of(
            static_cast<std::int64_t>(chunk), plan.num_micro_batches - 1)];
      }
    }
    return nullptr;
  }

  template <class IsIt, class Visit>
  void batch_of(const IsIt& is_it, const Visit& visit) {
    const Slot* const slot = slot_with(is_it);
    is_here_ = slot != nullptr;
    BatchActivations<TensorView> elsewhere;
    BatchActivations<TensorSpec>::for_each(
        run_.trainer().plan().activations.batch,
        elsewhere,
        [&](const TensorSpec& spec, TensorView& view) { view = shape_of(spec); });
    visit(is_here_ ? slot->batch : elsewhere);
  }

  // Columns [begin, begin + count) of a rank's row, and where they lie in the whole row.
  struct Columns {
    std::int64_t begin;
    std::int64_t whole_begin;
    std::int64_t count;
  };

  void layer(const std::string& prefix, const LayerActivations<TensorView>& layer) {
    const std::int64_t H = dims_.H;
    residual(prefix + "attention_in", layer.attention_in_TD);
    residual(prefix + "attention_in_rrms", layer.attention_in_rrms_T);
    const std::int64_t N = model_.num_heads;
    const std::int64_t G = model_.num_kv_heads;
    whole(
        prefix + "qkv",
        layer.qkv_TCH,
        (N + 2 * G) * H,
        {{0, q_heads_.begin * H, dims_.local_N * H},
         {dims_.local_N * H, (N + kv_heads_.begin) * H, dims_.local_G * H},
         {(dims_.local_N + dims_.local_G) * H, (N + G + kv_heads_.begin) * H, dims_.local_G * H}});
    whole(prefix + "attention heads",
          layer.heads_TNH,
          N * H,
          {{0, q_heads_.begin * H, dims_.local_N * H}});
    residual(prefix + "attention_out", layer.attention_out_TD);
    residual(prefix + "attention_out_rrms", layer.attention_out_rrms_T);
    residual(prefix + "residual", layer.residual_TD);
    residual(prefix + "moe_in", layer.moe_in_TD);
    residual(prefix + "moe_in_rrms", layer.moe_in_rrms_T);
    routed(prefix + "router_logits", layer.router_logits_TE);
    routed(prefix + "router_probs", layer.router_probs_TE);
    routed(prefix + "experts", layer.experts_TK);
    routed(prefix + "gates", layer.gates_TK);
    routed(prefix + "z", layer.z_T);
    per_sequence(prefix + "counts", layer.counts_BE);
    per_sequence(prefix + "probs_sum", layer.probs_sum_BE);
    per_sequence(prefix + "balance", layer.balance_B);
    expert_rows(prefix, layer);
    if (layer.dense_hidden_TF.present()) {
      const Range ffn = share_.tensor.of(model_.dense_ffn_dim);
      whole(prefix + "dense_hidden",
            layer.dense_hidden_TF,
            model_.dense_ffn_dim,
            {{0, ffn.begin, ffn.count}});
    }
    residual(prefix + "moe_out", layer.moe_out_TD);
    residual(prefix + "moe_out_rrms", layer.moe_out_rrms_T);
    residual(prefix + "out", layer.out_TD);
  }

  std::int64_t global_token(std::int64_t b, std::int64_t s) const {
    return sequences_[static_cast<std::size_t>(b)] * dims_.S + s;
  }

  // The token of a rank that has `positions` of each sequence.
  std::int64_t token_of(std::int64_t local, const Range& positions) const {
    return global_token(local / positions.count, positions.begin + local % positions.count);
  }

  std::vector<double> nothing(std::int64_t num_rows, std::int64_t num_columns) const {
    return std::vector<double>(static_cast<std::size_t>(num_rows * num_columns), std::nan(""));
  }

  void finish(const std::string& name,
              const std::vector<double>& own,
              std::int64_t num_columns,
              std::int64_t rows_each = 1) {
    Joined joined = join(run_.all(), own);
    for (std::size_t i = 0; i < joined.high.size(); ++i) {
      if (joined.num_ranks[i] == 0) {
        joined.low[i] = joined.high[i] = std::nan("");
      }
    }
    results_.push_back({.name = name,
                        .num_columns = num_columns,
                        .rows_each = rows_each,
                        .low = std::move(joined.low),
                        .high = std::move(joined.high)});
  }

  void by_token(const std::string& name,
                const TensorView& view,
                const Range& positions,
                std::int64_t num_columns,
                const std::vector<Columns>& columns) {
    std::vector<double> own = nothing(num_tokens_, num_columns);
    const std::int64_t rows = dims_.B * positions.count;
    const std::int64_t width = view.num_elements() / rows;
    for (std::int64_t t = 0; is_here_ && t < rows; ++t) {
      for (const Columns& run : columns) {
        for (std::int64_t i = 0; i < run.count; ++i) {
          own[static_cast<std::size_t>(token_of(t, positions) * num_columns + run.whole_begin +
                                       i)] = element(view, t * width + run.begin + i);
        }
      }
    }
    finish(name, own, num_columns);
  }

  void whole(const std::string& name,
             const TensorView& view,
             std::int64_t num_columns,
             const std::vector<Columns>& columns) {
    by_token(name, view, {.begin = 0, .count = dims_.S}, num_columns, columns);
  }

  void residual(const std::string& name, const TensorView& view) {
    const Range positions =
        dims_.split_sequences ? dims_.piece_S : Range{.begin = 0, .count = dims_.S};
    const std::int64_t width = view.num_elements() / dims_.residual_T;
    by_token(name, view, positions, width, {{0, 0, width}});
  }

  void routed(const std::string& name, const TensorView& view) {
    const std::int64_t width = view.num_elements() / dims_.routed_T;
    by_token(name, view, dims_.piece_S, width, {{0, 0, width}});
  }

  // Shown at a sequence's first token.
  void per_sequence(const std::string& name, const TensorView& view) {
    const std::int64_t width = view.num_elements() / dims_.B;
    std::vector<double> own = nothing(num_tokens_, width);
    for (std::int64_t i = 0; is_here_ && i < view.num_elements(); ++i) {
      own[static_cast<std::size_t>(global_token(i / width, 0) * width + i % width)] =
          element(view, i);
    }
    finish(name, own, width);
  }

  // What arrives at an expert: from each rank what that rank sent, in its order. So all ranks tell
  // which of their tokens' choices they sent to which expert.
  void expert_rows(const std::string& prefix, const LayerActivations<TensorView>& layer) {
    const std::int64_t num_offsets = dims_.E * dims_.expert_pieces + 1;
    const std::int64_t length = num_offsets + dims_.sent_R;
    std::vector<std::int64_t> own;
    for (std::int64_t i = 0; i < num_offsets; ++i) {
      own.push_back(is_here_ ? layer.offsets_E1.as<std::int32_t>()[i] : 0);
    }
    for (std::int64_t i = 0; !is_here_ && i < dims_.sent_R; ++i) {
      own.push_back(0);
    }
    for (std::int64_t i = 0; is_here_ && i < dims_.sent_R; ++i) {
      const std::int64_t choice = layer.source_R.as<std::int32_t>()[i] / dims_.expert_pieces;
      own.push_back(token_of(choice / dims_.K, dims_.piece_S) * dims_.K + choice % dims_.K);
    }
    std::vector<std::int64_t> sent(own.size() * static_cast<std::size_t>(run_.all().size()));
    const auto view_of = [](std::vector<std::int64_t>& values) {
      return TensorView(
          values.data(), {static_cast<std::int64_t>(values.size())}, DType::i64, Device::cpu);
    };
    run_.all().run(AllGather{.y = view_of(sent), .x = view_of(own)}, "test.sent", {});

    const Range ffn = share_.expert_tensor.of(model_.ffn_dim);
    std::vector<double> rows = nothing(num_tokens_ * dims_.K, dims_.D);
    std::vector<double> hidden = nothing(num_tokens_ * dims_.K, model_.ffn_dim);
    const RankGroup senders = run_.mesh().group(Axis::expert_ranks, run_.world().rank());
    const std::int64_t place = run_.mesh().index(Axis::expert_ranks, run_.world().rank());
    std::int64_t row = 0;
    for (std::int64_t e = 0; is_here_ && e < dims_.local_E; ++e) {
      for (const int sender : senders.ranks()) {
        const std::int64_t* of_sender = sent.data() + sender * length;
        const std::int64_t index = place * dims_.local_E + e;
        for (std::int64_t j = of_sender[index]; j < of_sender[index + 1]; ++j, ++row) {
          const std::int64_t choice = of_sender[num_offsets + j];
          for (std::int64_t d = 0; d < dims_.D; ++d) {
            rows[static_cast<std::size_t>(choice * dims_.D + d)] =
                element(layer.rows_RD, row * dims_.D + d);
          }
          for (std::int64_t f = 0; f < ffn.count; ++f) {
            hidden[static_cast<std::size_t>(choice * model_.ffn_dim + ffn.begin + f)] =
                element(layer.expert_hidden_RF, row * ffn.count + f);
          }
        }
      }
    }
    finish(prefix + "expert rows", rows, dims_.D, dims_.K);
    finish(prefix + "expert_hidden", hidden, model_.ffn_dim, dims_.K);
  }

  RankRun& run_;
  bool is_here_ = true;  // this rank has what is told of; else only its shape is known
  const Dims& dims_;
  const Share& share_;
  const ModelConfig& model_;
  std::int64_t num_tokens_;
  std::vector<std::int64_t> sequences_;  // of the micro-batch, their places in the step
  Range q_heads_;
  Range kv_heads_;
  std::vector<OpResult> results_;
};

double largest_of(const std::vector<double>& values) {
  double result = 0;
  for (const double value : values) {
    result = std::isnan(value) ? result : std::max(result, std::abs(value));
  }
  return result;
}

// The place and the values of the first element that departs; empty if none does.
std::string departure_of(const OpResult& exact, const OpResult& actual, std::int64_t length) {
  const double bound = kAgrees * largest_of(exact.high);
  std::string first;
  std::int64_t num_apart = 0;
  std::int64_t num_compared = 0;
  double worst = 0;
  for (std::size_t i = 0; i < exact.high.size(); ++i) {
    if (std::isnan(actual.low[i]) || std::isnan(exact.high[i])) {
      continue;  // of another micro-batch
    }
    ++num_compared;
    const double apart =
        std::max(std::abs(actual.low[i] - exact.high[i]), std::abs(actual.high[i] - exact.high[i]));
    if (apart <= bound) {
      continue;
    }
    ++num_apart;
    worst = std::max(worst, apart);
    if (first.empty()) {
      const std::int64_t row = static_cast<std::int64_t>(i) / exact.num_columns;
      const std::int64_t token = row / exact.rows_each;
      first = fmt::format(
          "{} [sequence {}, position {}{}, column {}]: {:.12g} and not {:.12g}",
          exact.name,
          token / length,
          token % length,
          exact.rows_each > 1 ? fmt::format(", choice {}", row % exact.rows_each) : "",
          static_cast<std::int64_t>(i) % exact.num_columns,
          std::abs(actual.low[i] - exact.high[i]) > bound ? actual.low[i] : actual.high[i],
          exact.high[i]);
      if (actual.low[i] != actual.high[i]) {
        first += " (and ranks that should hold the same differ)";
      }
    }
  }
  return first.empty() ? first
                       : fmt::format("{} ({} of {} elements depart, the farthest by {:.2g})",
                                     first,
                                     num_apart,
                                     num_compared,
                                     worst);
}

std::string departure_of(const std::string& name,
                         const std::vector<double>& exact,
                         const std::vector<double>& actual) {
  const double bound = kAgrees * largest_of(exact);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    if (!(std::abs(actual[i] - exact[i]) <= bound)) {
      return fmt::format("{} [element {}]: {:.12g} and not {:.12g}", name, i, actual[i], exact[i]);
    }
  }
  return {};
}

}  // namespace

FirstStep first_step(const Layout& layout, Ranks ranks) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  FirstStep result;
  on_ranks(ranks, layout.num_ranks, [&](World& world) {
    RankRun run(world, yaml, run_overrides(layout, "f64"));
    run.trainer().step();
    FirstStep own{.sequence_length = run.config().batch.sequence_length,
                  .ops = Collector(run).collect(),
                  .parameters = {},
                  .gradients = run.gradients()};
    // Layers come from the last to the first, and what a layer ends with before what it begins
    // with.
    const ParameterPlan whole = plan_parameters(run.config().model, DType::f64);
    for (auto it = whole.logical.rbegin(); it != whole.logical.rend(); ++it) {
      own.parameters.push_back(it->name);
    }
    if (keeps_result(ranks, world)) {
      result = std::move(own);
    }
  });
  return result;
}

std::string describe_departure(const FirstStep& one_rank, const FirstStep& actual) {
  std::string text;
  for (std::size_t i = 0; i < one_rank.ops.size() && text.empty(); ++i) {
    const std::string departure =
        departure_of(one_rank.ops[i], actual.ops[i], one_rank.sequence_length);
    if (!departure.empty()) {
      text = fmt::format("first departs: {}\n  {}",
                         departure,
                         i == 0 ? std::string("no op runs before it")
                                : fmt::format("the {} results before it, the last {}, agree to {}",
                                              i,
                                              one_rank.ops[i - 1].name,
                                              kAgrees));
    }
  }
  if (text.empty()) {
    text =
        fmt::format("all {} results of the forward pass agree to {}", one_rank.ops.size(), kAgrees);
  }
  std::vector<std::string> departures;
  for (const std::string& name : one_rank.parameters) {
    const std::string departure =
        departure_of(name, one_rank.gradients.at(name), actual.gradients.at(name));
    if (!departure.empty()) {
      departures.push_back(departure);
    }
  }
  text += fmt::format("\n  gradients that depart, in the order of the backward pass: {} of {}",
                      departures.size(),
                      one_rank.parameters.size());
  for (std::size_t i = 0; i < std::min(departures.size(), kNumListed); ++i) {
    text += "\n    " + departures[i];
  }
  if (departures.size() > kNumListed) {
    text += "\n    ...";
  }
  return text;
}

}  // namespace memphis::test
