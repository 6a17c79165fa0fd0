// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/run_work.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "csrc/plan/stages.h"
#include "csrc/plan/tensor_chunks.h"

namespace memphis {
namespace {

double real(std::int64_t value) {
  return static_cast<double>(value);
}

class Describer {
 public:
  explicit Describer(const RunDescription& run)
      : run_(run),
        m_(run.model),
        p_(run.parallel),
        t_(run.techniques),
        mesh_(run.parallel, run.num_ranks),
        value_bytes_(t_.products == Products::f32 ? 4 : 2),
        tokens_(real(run.batch.micro_batch * run.batch.sequence_length) / real(p_.context)),
        own_tokens_(tokens_ / real(p_.tensor)) {}

  LayerWork layer(std::int64_t index) const {
    LayerWork work;
    attention(index, work);
    norms(work);
    const bool experts = m_.has_experts(index);
    if (experts) {
      routed(work);
    }
    dense(experts ? m_.shared_ffn_dim : m_.dense_ffn_dim, experts, work);
    if (t_.sharded_weights) {
      gather_weights(index, work);
    }
    finish(work);
    return work;
  }

  LayerWork head() const {
    LayerWork work;
    add_product(work, tokens_, real(m_.vocab_size) / tensor(), real(m_.d_model), 1, Kind::head);
    // Logits, their maximum, sum and gradient, mostly in f32.
    work.backward_inputs.streams = 16 * tokens_ * real(m_.vocab_size) / tensor();
    const double bytes = tokens_ * real(m_.d_model) * value_bytes_;
    const double alone = t_.tensor_beside ? bytes / real(TensorChunks::kMost) : bytes;
    work.forward.exchanges.push_back(tensor_gather(alone));
    if (t_.tensor_beside) {
      work.forward.exchanges.push_back(tensor_gather(bytes - alone));
      work.forward.exchanges.back().beside = true;
    }
    work.backward_inputs.exchanges.push_back(tensor_sum(bytes));
    work.backward_inputs.exchanges.back().beside = t_.tensor_beside;
    drop_lonely(work.forward);
    drop_lonely(work.backward_inputs);
    return work;
  }

  double message_bytes() const { return own_tokens_ * real(m_.d_model) * value_bytes_; }

  RankGroup group(Axis axis) const { return mesh_.group(axis, 0); }

  // Of a rank whose stages hold these layers.
  struct Elements {
    double dense = 0;
    double experts = 0;
  };
  Elements elements(const std::vector<StageLayers>& stages) const {
    Elements result;
    double around = 0;  // matrices as large as the vocabulary
    for (const StageLayers& stage : stages) {
      for (std::int64_t layer = stage.layers.begin; layer < stage.layers.end(); ++layer) {
        const DescribedParameters of_layer = parameters_of(m_, layer);
        result.dense += (of_layer.attention + of_layer.dense) / tensor();
        result.experts +=
            of_layer.one_expert * real(m_.num_experts) / real(p_.expert * p_.expert_tensor);
      }
      around += real(stage.embedding) + real(stage.head);
    }
    if (m_.tied_embeddings) {
      around = std::min(around, 1.0);
    }
    result.dense += around * real(m_.vocab_size * m_.d_model) / tensor();
    return result;
  }

 private:
  enum class Kind : std::uint8_t { dense, experts, head };

  double tensor() const { return real(p_.tensor); }

  // y = x W in all three passes.
  void add_product(
      LayerWork& work, double rows, double out, double in, double count, Kind kind) const {
    if (rows * out * in * count == 0) {
      return;
    }
    Product product{.M = rows,
                    .N = out,
                    .K = in,
                    .count = count,
                    .of_experts = kind == Kind::experts,
                    .in_fp8 = t_.products == Products::fp8 && kind != Kind::head,
                    .together = kind != Kind::experts || t_.experts_at_once,
                    .result_bytes = value_bytes_};
    work.forward.products.push_back(product);
    std::swap(product.N, product.K);
    work.backward_inputs.products.push_back(product);
    work.backward_weights.products.push_back({.M = out,
                                              .N = in,
                                              .K = rows,
                                              .count = count,
                                              .of_experts = product.of_experts,
                                              .in_fp8 = product.in_fp8,
                                              .together = product.together,
                                              .result_bytes = 2 * t_.gradient_bytes});
    if (product.in_fp8) {
      // Read in 16 bits, written twice in 8: as it is and transposed.
      work.forward.streams += 4 * rows * in * count;
      work.backward_inputs.streams += 4 * rows * out * count;
    }
  }

  void add_streams(LayerWork& work, double elements) const {
    work.forward.streams += elements * value_bytes_;
    work.backward_inputs.streams += 2 * elements * value_bytes_;
  }

  void attention(std::int64_t index, LayerWork& work) const {
    const double D = real(m_.d_model);
    const double heads = real(m_.num_heads) / tensor();
    const double kv_heads = std::max(real(m_.num_kv_heads) / tensor(), 1.0);
    const double qk = real(m_.head_dim);
    const double v = real(m_.values());
    if (m_.query_rank > 0) {
      add_product(work, own_tokens_, real(m_.query_rank), D, 1, Kind::dense);
      add_product(work, tokens_, heads * qk, real(m_.query_rank), 1, Kind::dense);
    }
    if (m_.key_value_rank > 0) {
      add_product(work, own_tokens_, real(m_.key_value_rank + m_.rotated_dim), D, 1, Kind::dense);
      add_product(work,
                  tokens_,
                  heads * (qk - real(m_.rotated_dim) + v),
                  real(m_.key_value_rank),
                  1,
                  Kind::dense);
      if (m_.query_rank == 0) {
        add_product(work, tokens_, heads * qk, D, 1, Kind::dense);
      }
    } else {
      add_product(work, tokens_, heads * qk + kv_heads * (qk + v), D, 1, Kind::dense);
    }
    add_product(work, tokens_, D, heads * v, 1, Kind::dense);
    const double S = real(run_.batch.sequence_length);
    const bool cut = m_.window > 0 && index % 2 == 0;
    work.forward.scores = tokens_ * (cut ? std::min(2 * real(m_.window), S) : S) * heads * (qk + v);
    work.backward_inputs.scores = work.forward.scores;
    add_streams(work, 2 * tokens_ * heads * (qk + v) / 2 + 2 * tokens_ * kv_heads * qk);
    // One of two halves of a layer gathers its input and sums its output, and so does its backward.
    around_products(work, tokens_ * D * value_bytes_);
    if (p_.context > 1) {
      const double bytes = real(p_.context) * tokens_ * kv_heads * (qk + v) * value_bytes_;
      work.forward.exchanges.push_back({.kind = ExchangeKind::context,
                                        .pattern = Pattern::all_gather,
                                        .bytes = bytes,
                                        .group = group(Axis::context)});
      work.backward_inputs.exchanges.push_back({.kind = ExchangeKind::context,
                                                .pattern = Pattern::all_reduce,
                                                .bytes = bytes,
                                                .group = group(Axis::context)});
    }
  }

  void norms(LayerWork& work) const {
    // A norm reads and writes; two branches are added to the residual stream.
    add_streams(work, (2 * real(m_.norms_of_layer) + 6) * own_tokens_ * real(m_.d_model));
  }

  void dense(std::int64_t width, bool beside_experts, LayerWork& work) const {
    if (width == 0) {
      return;
    }
    const double local = real(width) / tensor();
    const double up = m_.gated ? 2 : 1;
    add_product(work, tokens_, up * local, real(m_.d_model), 1, Kind::dense);
    add_product(work, tokens_, real(m_.d_model), local, 1, Kind::dense);
    add_streams(work, (up + 1) * tokens_ * local);
    (void)beside_experts;
    around_products(work, tokens_ * real(m_.d_model) * value_bytes_);
  }

  void routed(LayerWork& work) const {
    const double D = real(m_.d_model);
    const double pieces = real(p_.expert_tensor);
    const double local_experts = real(m_.num_experts) / real(p_.expert);
    const double sent = own_tokens_ * real(m_.experts_per_token);
    const double received = sent * pieces;
    const double width = real(m_.expert_ffn_dim) / pieces;
    const double up = m_.gated ? 2 : 1;
    const double rows = received / local_experts;
    add_product(work, rows, up * width, D, local_experts, Kind::experts);
    add_product(work, rows, D, width, local_experts, Kind::experts);
    // Put in order before and after they travel, activated, weighed and summed.
    add_streams(work, (4 * sent + 4 * received) * D + (up + 1) * received * width);
    const double starts = t_.experts_at_once ? 1 : local_experts;
    work.forward.starts = starts;
    work.backward_inputs.starts = starts;
    work.backward_weights.starts = starts;
    if (p_.expert * p_.expert_tensor == 1) {
      return;
    }
    // Pieces of an expert: rows come to one rank of them and are gathered there, or each is sent its
    // own copy.
    RankGroup experts = group(Axis::expert_ranks);
    double copies = pieces;
    if (t_.experts_as_tensor) {
      experts = {.first = 0, .stride = p_.expert_tensor, .count = p_.expert};
      copies = 1;
    }
    const Exchange rows_out{.kind = ExchangeKind::rows,
                            .pattern = Pattern::all_to_all,
                            .bytes = sent * copies * D * value_bytes_,
                            .group = experts,
                            .tokens_bytes = t_.one_row_a_node ? own_tokens_ * D * value_bytes_ : 0,
                            .choices = real(m_.experts_per_token),
                            .most_nodes = real(m_.nodes_of_token)};
    for (PassWork* pass : {&work.forward, &work.backward_inputs}) {
      pass->exchanges.push_back(rows_out);
      pass->exchanges.push_back(rows_out);
      if (t_.experts_as_tensor && p_.expert_tensor > 1) {
        for (const Pattern pattern : {Pattern::all_gather, Pattern::reduce_scatter}) {
          pass->exchanges.push_back({.kind = ExchangeKind::pieces,
                                     .pattern = pattern,
                                     .bytes = received * D * value_bytes_,
                                     .group = group(Axis::expert_tensor)});
        }
      }
    }
  }

  Exchange tensor_gather(double bytes) const {
    return {.kind = ExchangeKind::tensor,
            .pattern = Pattern::all_gather,
            .bytes = bytes,
            .group = group(Axis::tensor)};
  }
  Exchange tensor_sum(double bytes) const {
    return {.kind = ExchangeKind::tensor,
            .pattern = Pattern::reduce_scatter,
            .bytes = bytes,
            .group = group(Axis::tensor)};
  }
  void around_products(LayerWork& work, double bytes) const {
    // What a product takes in 8 bits is gathered in 8; sums have 16.
    const double gathered = t_.products == Products::fp8 ? bytes / 2 : bytes;
    if (t_.tensor_beside) {
      return beside_products(work, bytes);
    }
    for (PassWork* pass : {&work.forward, &work.backward_inputs}) {
      pass->exchanges.push_back(tensor_gather(gathered));
      pass->exchanges.push_back(tensor_sum(bytes));
    }
    work.backward_weights.exchanges.push_back(tensor_gather(gathered));
    if (weights_apart()) {
      work.backward_weights.exchanges.push_back(tensor_gather(gathered));
    }
  }

  // As csrc/model/tensor_products.h, in as many chunks as there may be.
  void beside_products(LayerWork& work, double bytes) const {
    const double alone = bytes / real(TensorChunks::kMost);
    const auto add = [&](PassWork& pass, Exchange exchange, bool beside) {
      exchange.beside = beside;
      pass.exchanges.push_back(exchange);
    };
    add(work.forward, tensor_gather(alone), false);
    add(work.forward, tensor_gather(bytes - alone), true);
    add(work.forward, tensor_sum(bytes - alone), true);
    add(work.forward, tensor_sum(alone), false);
    add(work.backward_inputs, tensor_gather(alone), false);
    add(work.backward_inputs, tensor_gather(bytes - alone), true);
    add(work.backward_inputs, tensor_sum(bytes), true);
    add(work.backward_weights, tensor_gather(bytes), true);
    if (weights_apart()) {
      add(work.backward_weights, tensor_gather(bytes), true);
    }
  }
  // Gradients of weights, formed later, need the gradient of the output again.
  bool weights_apart() const {
    return p_.pipeline > 1 &&
           (p_.schedule == ScheduleKind::zb_h1 || p_.schedule == ScheduleKind::zbv);
  }

  void gather_weights(std::int64_t index, LayerWork& work) const {
    const DescribedParameters of_layer = parameters_of(m_, index);
    const double bytes = (of_layer.attention + of_layer.dense) / tensor() * value_bytes_;
    const RankGroup replicas = group(Axis::data_context);
    const auto move = [&](Pattern pattern, double moved) {
      return Exchange{
          .kind = ExchangeKind::weights, .pattern = pattern, .bytes = moved, .group = replicas};
    };
    work.forward.exchanges.push_back(move(Pattern::all_gather, bytes));
    work.backward_inputs.exchanges.push_back(move(Pattern::all_gather, bytes));
    work.backward_weights.exchanges.push_back(
        move(Pattern::reduce_scatter, bytes / value_bytes_ * t_.gradient_bytes));
  }

  void finish(LayerWork& work) const {
    if (t_.again_products + t_.again_scores + t_.again_streams > 0) {
      work.again.scores = t_.again_scores * work.forward.scores;
      work.again.streams = t_.again_streams * work.forward.streams;
      for (Product product : work.forward.products) {
        product.count *= t_.again_products;
        if (product.count > 0) {
          work.again.products.push_back(product);
        }
      }
      if (t_.again_exchanges) {
        work.again.exchanges = work.forward.exchanges;
        std::erase_if(work.again.exchanges,
                      [](const Exchange& each) { return each.kind == ExchangeKind::weights; });
        work.again.starts = work.forward.starts;
      }
    }
    for (PassWork* pass :
         {&work.forward, &work.again, &work.backward_inputs, &work.backward_weights}) {
      drop_lonely(*pass);
    }
  }
  static void drop_lonely(PassWork& pass) {
    std::erase_if(pass.exchanges, [](const Exchange& each) { return each.group.count == 1; });
  }

  const RunDescription& run_;
  const ModelShape& m_;
  const ParallelConfig& p_;
  const Techniques& t_;
  Mesh mesh_;
  double value_bytes_;
  double tokens_;      // that a rank's part of a product meets
  double own_tokens_;  // of the residual stream, which tensor ranks share out
};

StageLayout layout_of(const RunDescription& run, const std::vector<double>& costs, double head) {
  const ParallelConfig& p = run.parallel;
  const std::int64_t stages = p.pipeline * num_chunks(p);
  const std::int64_t layers = static_cast<std::int64_t>(costs.size());
  if (!p.stages.empty()) {
    return stages_of_counts(layers, p.stages);
  }
  if (stages <= layers && layers % stages == 0) {
    return even_stages(layers, stages);
  }
  // A layer less in the first stage and the last, for the embedding and the head.
  if ((layers + 2) % stages == 0) {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(stages), (layers + 2) / stages);
    --counts.front();
    --counts.back();
    return stages_of_counts(layers, counts);
  }
  return balance_stages({.layers = costs, .embedding = head, .head = head}, stages);
}

double flops_of(const LayerWork& work) {
  double sum = 3 * work.forward.scores;
  for (const PassWork* pass : {&work.forward, &work.backward_inputs, &work.backward_weights}) {
    for (const Product& product : pass->products) {
      sum += product.flops();
    }
  }
  return sum;
}

std::vector<StageLayers> stages_of_rank(const RunWork& work, std::int64_t rank) {
  std::vector<StageLayers> stages;
  for (std::int64_t s = 0; s < work.schedule.shape.num_stages(); ++s) {
    if (work.schedule.shape.place_of(s).rank == rank) {
      stages.push_back(work.layout[static_cast<std::size_t>(s)]);
    }
  }
  return stages;
}

void end_of_step(const Describer& describer, RunWork& work) {
  const Techniques& t = work.run.techniques;
  const double value_bytes = t.products == Products::f32 ? 4 : 2;
  double most = 0;
  for (std::int64_t rank = 0; rank < work.schedule.shape.num_ranks; ++rank) {
    const Describer::Elements elements = describer.elements(stages_of_rank(work, rank));
    const RankGroup dense = describer.group(Axis::data_context);
    const RankGroup experts = describer.group(Axis::expert_data);
    const double updated =
        elements.dense / real(dense.count) + elements.experts / real(experts.count);
    if (updated <= most) {
      continue;
    }
    most = updated;
    work.updated_elements = updated;
    work.reductions.clear();
    work.gathers.clear();
    for (const auto& [count, group] :
         {std::pair(elements.dense, dense), std::pair(elements.experts, experts)}) {
      if (group.count > 1 && count > 0 && !t.sharded_weights) {
        work.reductions.push_back({.kind = ExchangeKind::weights,
                                   .pattern = Pattern::reduce_scatter,
                                   .bytes = count * t.gradient_bytes,
                                   .group = group});
        work.gathers.push_back({.kind = ExchangeKind::weights,
                                .pattern = Pattern::all_gather,
                                .bytes = count * value_bytes,
                                .group = group});
      }
    }
  }
}

void describe_layers(const Describer& describer, RunWork& work) {
  const ModelShape& model = work.run.model;
  std::vector<double> costs;
  std::vector<std::pair<bool, bool>> seen;  // what tells layers apart
  for (std::int64_t layer = 0; layer < model.num_layers + model.predicted_layers; ++layer) {
    const std::pair<bool, bool> kind(model.has_experts(layer), model.window > 0 && layer % 2 == 0);
    const auto found = std::find(seen.begin(), seen.end(), kind);
    work.kind_of_layer.push_back(static_cast<std::size_t>(found - seen.begin()));
    if (found == seen.end()) {
      seen.push_back(kind);
      work.kinds.push_back(describer.layer(layer));
    }
    costs.push_back(flops_of(work.kinds[work.kind_of_layer.back()]));
  }
  work.head = describer.head();
  work.layout = layout_of(work.run, costs, flops_of(work.head));
}

// As a dimension of its own, so that neighbours along it are those of a pipeline.
RankGroup neighbours(const RankGroup& pipeline) {
  return {.first = pipeline.first, .stride = pipeline.stride, .count = 2};
}

}  // namespace

RunWork run_work(const RunDescription& run, const PipelineSchedule* schedule) {
  RunWork work;
  work.run = run;
  const Describer describer(work.run);
  describe_layers(describer, work);
  work.schedule = schedule != nullptr
                      ? *schedule
                      : make_schedule(pipeline_shape(run.parallel, run.num_micro_batches()));
  work.message_bytes = describer.message_bytes();
  work.message_group = neighbours(describer.group(Axis::pipeline));
  end_of_step(describer, work);
  return work;
}

double least_state_bytes(const RunDescription& run) {
  RunWork work;
  work.run = run;
  const Describer describer(work.run);
  describe_layers(describer, work);
  work.schedule.shape = pipeline_shape(run.parallel, run.num_micro_batches());
  const bool shards = run.parallel.zero > 0;
  const double weight_bytes = run.techniques.products == Products::f32 ? 4 : 2;
  constexpr double kGradientBytes = 4;
  constexpr double kMomentBytes = 8;
  const double state_bytes = kMomentBytes + (weight_bytes == 4 ? 0 : 4);  // and a master in f32
  double most = 0;
  for (std::int64_t rank = 0; rank < work.schedule.shape.num_ranks; ++rank) {
    const Describer::Elements elements = describer.elements(stages_of_rank(work, rank));
    const auto of = [&](double count, Axis replicas) {
      const double sharers = shards ? real(describer.group(replicas).count) : 1;
      const double whole = run.parallel.zero < 2 ? weight_bytes + kGradientBytes : 0;
      return count * (whole + state_bytes / sharers);
    };
    most = std::max(
        most, of(elements.dense, Axis::data_context) + of(elements.experts, Axis::expert_data));
  }
  return most;
}

}  // namespace memphis
