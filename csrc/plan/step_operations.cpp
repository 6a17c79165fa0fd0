// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/step_operations.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <optional>
#include <utility>

#include "csrc/plan/communication.h"
#include "csrc/plan/recompute.h"
#include "csrc/plan/stage_costs.h"

namespace memphis {
namespace {

using enum OperationKind;

// Which layers' weights lie whole in the places in which they take turns: as
// csrc/model/weight_residency.
class Residency {
 public:
  explicit Residency(const ParameterPlan& parameters)
      : parameters_(parameters),
        layers_(static_cast<std::size_t>(parameters.num_weight_places), kNoLayer) {}

  // Whether it has to come.
  bool takes(int layer) {
    if (layers_.empty() || layer < 0 || layer >= parameters_.num_layers) {
      return false;
    }
    int& held = layers_[static_cast<std::size_t>(layer) % layers_.size()];
    return std::exchange(held, layer) != layer;
  }

 private:
  const ParameterPlan& parameters_;
  std::vector<int> layers_;
};

class Writer {
 public:
  Writer(const Config& config, DType compute, const TrainingPlan& plan)
      : config_(config),
        compute_(compute),
        plan_(plan),
        d_(plan.dims),
        flops_(micro_batch_flops(config.model, config.batch, compute, plan.activations.recompute)),
        residency_(plan.parameters) {}

  std::vector<StepOperation> write() {
    // The step before has left the layers that are used first.
    for (int layer = 0; layer < plan_.parameters.num_weight_places; ++layer) {
      residency_.takes(layer);
    }
    const PipelineSchedule& schedule = plan_.schedule;
    const Action* first = nullptr;  // of a pair
    for (const ScheduleStep& step : schedule.ranks[static_cast<std::size_t>(plan_.messages.rank)]) {
      micro_batch_ = step.action.micro_batch;
      switch (step.kind) {
        case StepKind::receive:
        case StepKind::send: {
          const MessageKind kind = schedule.queues[static_cast<std::size_t>(step.queue)].kind;
          const bool activation = kind == MessageKind::activation;
          layer_ = kNoLayer;
          move(step.kind == StepKind::send ? send : receive,
               Pattern::broadcast,
               queue_name(kind),
               activation ? "pipeline.activation" : "pipeline.gradient",
               plan_.messages.message_TD.bytes());
          break;
        }
        case StepKind::compute:
          if (step.action.with_next) {
            first = &step.action;
          } else if (first != nullptr) {
            act_together(*std::exchange(first, nullptr), step.action);
          } else {
            act(step.action);
          }
          break;
      }
    }
    micro_batch_ = -1;
    layer_ = kNoLayer;
    end_of_step();
    return std::move(operations_);
  }

 private:
  // ---- what the collectives of csrc/model/regions.h and csrc/model/tensor_products.h do

  std::size_t tokens_bytes(std::int64_t tokens) const {
    return static_cast<std::size_t>(tokens * d_.D) * size_of(compute_);
  }
  void gather_tokens(std::int64_t tokens, bool beside) {
    if (d_.split_sequences) {
      move(exchange, Pattern::all_gather, "tensor", "tensor.whole_tokens", tokens_bytes(tokens));
      operations_.back().beside = beside;
    }
  }
  void sum_tokens(std::int64_t tokens, bool beside) {
    if (d_.tensor_parallel) {
      move(exchange,
           d_.split_sequences ? Pattern::reduce_scatter : Pattern::all_reduce,
           "tensor",
           "tensor.sum_terms",
           tokens_bytes(tokens));
      operations_.back().beside = beside;
    }
  }
  void whole_tokens(bool beside) { gather_tokens(d_.T, beside); }
  void sum_terms(bool beside) { sum_tokens(d_.T, beside); }
  // Before the first chunk's product there is none, and behind the last one's.
  void gather_chunks(const TensorChunks& chunks) {
    for (std::int64_t i = 0; i < d_.num_chunks(chunks); ++i) {
      gather_tokens(d_.chunk_of(chunks, i).whole.count, i > 0);
    }
  }
  void sum_chunks() {
    const std::int64_t count = d_.num_chunks(d_.tensor_chunks);
    for (std::int64_t i = 0; i < count; ++i) {
      sum_tokens(d_.chunk_of(d_.tensor_chunks, i).whole.count, i + 1 < count);
    }
  }
  void join_routed() {
    if (d_.tensor_parallel && !d_.split_sequences) {
      move(exchange, Pattern::all_gather, "tensor", "tensor.join_routed", tokens_bytes(d_.T));
      operations_.back().beside = d_.tensor_chunks.overlap() && d_.local_dense_F > 0;
    }
  }
  // The backward pass of a product and of the one before it, of which the first reads the gradient of a
  // branch and the second, for the gradient of its weight, the branch's input: begun behind the first
  // where exchanges overlap. `between` moves what is computed between the two.
  template <class Between>
  void products_backward(bool with_weights, const Between& between) {
    const bool overlap = d_.tensor_chunks.overlap();
    gather_chunks(d_.tensor_chunks);
    if (with_weights && overlap) {
      whole_tokens(true);
    }
    between();
    if (with_weights && !overlap) {
      whole_tokens(false);
    }
    if (with_weights) {
      sum_terms(overlap);
    } else {
      sum_chunks();
    }
  }
  // Rows, or a number for each, to the ranks of their experts or back.
  void rows(std::string_view name, std::int64_t width, DType dtype) {
    if (d_.exchange_rows) {
      move(exchange,
           Pattern::all_to_all,
           "expert_ranks",
           name,
           static_cast<std::size_t>(d_.sent_R * width) * size_of(dtype));
    }
  }
  // Where a pass of a pair leaves off while its rows are on their way.
  void end_turn() { turn_ends_.push_back(operations_.size()); }
  DType sums() const { return accumulation_dtype(compute_); }

  // ---- a layer

  void attention_forward() {
    gather_chunks(d_.tensor_chunks);
    gather_keys();
    sum_chunks();
  }

  // ---- what csrc/model/context_attention.cpp moves

  std::size_t heads_bytes(std::int64_t heads) const {
    return static_cast<std::size_t>(d_.U * heads * d_.H) * size_of(compute_);
  }
  void context_move(Pattern pattern, std::string_view name, std::size_t bytes) {
    move(exchange, pattern, "context", name, bytes);
  }
  // A rank's piece to one other, of which sent_bytes() takes an equal share off for its own.
  void shift(std::string_view name) {
    const auto others = static_cast<std::size_t>(d_.context().count - 1);
    context_move(Pattern::all_to_all, name, heads_bytes(2 * d_.local_G) / others);
  }
  void exchange_heads(std::string_view name) {
    const Dims::AttentionCall call = d_.attention_call();
    context_move(Pattern::all_to_all, name, heads_bytes(call.N + 2 * call.G));
  }
  void exchange_outputs(std::string_view name) {
    context_move(Pattern::all_to_all, name, heads_bytes(d_.attention_call().N));
  }

  void gather_keys() {
    if (!d_.exchange_keys) {
      return;
    }
    switch (d_.key_exchange) {
      case ContextExchange::ring:
        for (std::int64_t i = 1; i < d_.context().count; ++i) {
          shift("context.ring");
        }
        return;
      case ContextExchange::all_to_all:
        exchange_heads("context.heads");
        return exchange_outputs("context.out");
      default:
        return context_move(Pattern::all_gather, "context.keys", heads_bytes(2 * d_.local_G));
    }
  }
  void attention_backward() {
    if (!d_.exchange_keys) {
      return;
    }
    const std::int64_t ranks = d_.context().count;
    switch (d_.key_exchange) {
      case ContextExchange::ring:
        for (std::int64_t i = 0; i < ranks; ++i) {
          if (i + 1 < ranks) {
            shift("context.ring");
          }
          if (i > 0) {
            shift("context.dkeys");
          }
        }
        return;
      case ContextExchange::all_to_all:
        exchange_heads("context.heads");
        exchange_outputs("context.dout");
        exchange_outputs("context.out");
        return exchange_heads("context.dheads");
      default:
        gather_keys();
        return context_move(Pattern::reduce_scatter, "context.dkeys", heads_bytes(2 * d_.local_G));
    }
  }

  void dispatch() { rows("moe.dispatch", d_.D, compute_); }

  void dense_up() {
    if (d_.local_dense_F > 0) {
      gather_chunks(d_.tensor_chunks);
    }
  }

  void moe_forward() {
    if (d_.share_sequences()) {
      const LayerActivations<LayerTensor>& layer = plan_.activations.layer;
      move(exchange,
           Pattern::all_reduce,
           sequence_group(d_),
           "moe.balance",
           layer.counts_BE.spec.bytes() + layer.probs_sum_BE.spec.bytes() +
               layer.valid_B.spec.bytes());
    }
    if (d_.exchange_rows) {
      move(exchange,
           Pattern::all_gather,
           "expert_ranks",
           "moe.counts",
           plan_.activations.shared.sent_offsets_PE1.bytes());
    }
    dispatch();
    rows("moe.gates", 1, sums());
    end_turn();
    rows("moe.combine", d_.D, compute_);
    end_turn();
    join_routed();
    dense_up();
    if (d_.local_dense_F > 0) {
      sum_chunks();
    }
  }

  void recompute_layer(const RecomputeGroups& groups) {
    if (groups.block) {
      attention_forward();
    } else if (groups.attention) {
      gather_keys();
    }
    if (groups.block || (groups.norm && !d_.exchange_rows)) {
      dispatch();
      end_turn();
    }
    if (groups.experts || groups.block) {
      dense_up();
    }
  }

  void backward_layer(bool with_weights) {
    rows("moe.dcombine", d_.D, compute_);
    end_turn();
    rows("moe.ddispatch", d_.D, compute_);
    rows("moe.dgates", 1, sums());
    end_turn();
    join_routed();
    if (d_.local_dense_F > 0) {
      products_backward(with_weights, [] {});
    }
    products_backward(with_weights, [this] { attention_backward(); });
  }

  void backward_weights_of_layer() {
    for (int i = 0; i < (d_.local_dense_F > 0 ? 4 : 2); ++i) {
      whole_tokens(d_.tensor_chunks.overlap());
    }
  }

  // ---- the head

  void backward_head() {
    const TensorChunks chunks = d_.tensor_chunks.of_sequences();
    std::int64_t num_summed = 0;
    gather_chunks(chunks);
    for (std::int64_t begin = 0; begin < d_.T; begin += d_.head_chunk) {
      const std::int64_t columns = d_.pad_chunk(std::min(d_.head_chunk, d_.T - begin));
      if (d_.tensor_parallel) {
        move(exchange,
             Pattern::all_gather,
             "tensor",
             "head.cross_entropy",
             static_cast<std::size_t>(2 * plan_.share.tensor.count * columns) * size_of(sums()));
      }
      const std::int64_t end = std::min(begin + d_.head_chunk, d_.T);
      for (; num_summed < d_.num_chunks(chunks); ++num_summed) {
        const TokenChunk chunk = d_.chunk_of(chunks, num_summed);
        if (chunk.whole.end() > end) {
          break;
        }
        sum_tokens(chunk.whole.count, chunks.overlap());
      }
    }
  }

  // ---- weights and gradients

  std::string_view group_of(const Segment& segment) const { return name_of(segment.replicas); }
  std::size_t weight_bytes(const Segment& segment) const {
    return static_cast<std::size_t>(segment.num_elements) * size_of(segment.dtype);
  }
  std::size_t gradient_bytes(std::int64_t num_elements) const {
    return static_cast<std::size_t>(num_elements) * size_of(sums());
  }

  void start_gather(int layer) {
    if (!residency_.takes(layer)) {
      return;
    }
    for (const Segment& segment : plan_.parameters.segments) {
      if (segment.place && segment.layer == layer) {
        layer_ = layer;
        move(
            gather, Pattern::all_gather, group_of(segment), "layer.weights", weight_bytes(segment));
      }
    }
  }
  void acquire(int layer, std::optional<int> next) {
    start_gather(layer);
    if (next) {
      start_gather(*next);
    }
    layer_ = layer;
  }
  void release_layer(int layer) {
    if (plan_.parameters.num_weight_places > 0 && layer >= 0 &&
        layer < plan_.parameters.num_layers) {
      operations_.push_back({.kind = release, .layer = layer, .micro_batch = micro_batch_});
    }
  }

  // As GradientReduction::after_backward.
  void reduce_layer(int layer) {
    const bool each = plan_.parameters.num_sum_elements > 0;
    if (!each && micro_batch_ + 1 < plan_.num_micro_batches) {
      return;
    }
    layer_ = layer;
    for (const LayerRun& shared : plan_.parameters.shared_kv) {
      if (shared.layer == layer) {
        move(reduce,
             Pattern::all_reduce,
             kKvSharers,
             "optimizer.shared_kv",
             gradient_bytes(shared.elements.count));
      }
    }
    // Those of one group in one call, in the order of the groups' first segments.
    const std::size_t first = operations_.size();
    for (const Segment& segment : plan_.parameters.segments) {
      if (segment.layer != layer || !segment.replicated()) {
        continue;
      }
      const std::size_t bytes = gradient_bytes(segment.num_elements);
      const auto same = std::find_if(
          operations_.begin() + static_cast<std::ptrdiff_t>(first),
          operations_.end(),
          [&](const StepOperation& other) { return other.group == group_of(segment); });
      if (same != operations_.end()) {
        same->bytes += bytes;
      } else {
        move(reduce,
             segment.sharded() ? Pattern::reduce_scatter : Pattern::all_reduce,
             group_of(segment),
             "optimizer.gradients",
             bytes);
      }
    }
  }

  // ---- the actions of a schedule, as csrc/model/grok.cpp does them

  void act(const Action& action) {
    const StageLayers& stage =
        plan_.activations.chunks[static_cast<std::size_t>(action.chunk)].stage;
    const auto begin = static_cast<int>(stage.layers.begin);
    const auto end = static_cast<int>(stage.layers.end());
    const auto head = static_cast<int>(d_.L);
    switch (action.kind) {
      case ActionKind::forward:
        if (stage.embedding) {
          acquire(kBeforeLayers, begin < end ? std::optional(begin) : std::nullopt);
          work(forward, kBeforeLayers, flops_.embedding.forward);
          sum_terms(false);
        }
        for (int layer = begin; layer < end; ++layer) {
          acquire(layer, layer + 1 < end ? std::optional(layer + 1) : std::nullopt);
          work(forward, layer, flops_of(layer).forward);
          attention_forward();
          if (plan_.activations.recompute.sends_again()) {
            end_turn();
          }
          moe_forward();
          release_layer(layer);
        }
        if (stage.head) {
          acquire(head, std::nullopt);
          work(forward, head, flops_.head.forward);
        }
        return;
      case ActionKind::backward:
      case ActionKind::backward_inputs:
        backward_of_stage(stage, action.kind == ActionKind::backward);
        return;
      case ActionKind::backward_weights:
        for (int layer = end; layer-- > begin;) {
          work(OperationKind::backward_weights, layer, flops_of(layer).backward_weights);
          backward_weights_of_layer();
          reduce_layer(layer);
        }
        return;
    }
  }

  // In turns, as Grok::forward_beside_backward: one goes on when the other has sent rows.
  void act_together(const Action& forward_action, const Action& backward_action) {
    struct Pass {
      std::vector<StepOperation> operations;
      std::vector<std::size_t> ends;  // of its turns
    };
    std::vector<StepOperation> before = std::exchange(operations_, {});
    std::array<Pass, 2> passes;
    std::size_t most_turns = 0;
    for (const auto& [action, pass] :
         {std::pair(&backward_action, &passes[0]), std::pair(&forward_action, &passes[1])}) {
      micro_batch_ = action->micro_batch;
      turn_ends_.clear();
      act(*action);
      turn_ends_.push_back(operations_.size());
      *pass = {.operations = std::exchange(operations_, {}), .ends = turn_ends_};
      most_turns = std::max(most_turns, pass->ends.size());
    }
    operations_ = std::move(before);
    for (std::size_t turn = 0; turn < most_turns; ++turn) {
      for (const Pass& pass : passes) {  // the backward pass goes first
        if (turn < pass.ends.size()) {
          const auto begin = pass.operations.begin();
          operations_.insert(
              operations_.end(),
              begin + static_cast<std::ptrdiff_t>(turn == 0 ? 0 : pass.ends[turn - 1]),
              begin + static_cast<std::ptrdiff_t>(pass.ends[turn]));
        }
      }
    }
  }

  void backward_of_stage(const StageLayers& stage, bool with_weights) {
    const auto begin = static_cast<int>(stage.layers.begin);
    const auto end = static_cast<int>(stage.layers.end());
    const auto head = static_cast<int>(d_.L);
    const OperationKind kind = with_weights ? backward : backward_inputs;
    if (stage.head) {
      acquire(head, begin < end ? std::optional(end - 1) : std::nullopt);
      work(kind, head, flops_.head.total());
      backward_head();
      reduce_layer(head);
    }
    for (int layer = end; layer-- > begin;) {
      acquire(layer, layer > begin ? std::optional(layer - 1) : std::nullopt);
      const RecomputeGroups again = plan_.activations.recompute.of_layer(layer);
      const double again_flops =
          static_cast<double>(d_.U) *
          recompute_cost_of_layer(config_.model, config_.batch.sequence_length, compute_, again)
              .flops;
      if (again.any()) {
        work(recompute, layer, again_flops);
        recompute_layer(again);
      }
      const PassFlops& flops = flops_of(layer);
      work(kind,
           layer,
           flops.backward_inputs - again_flops + (with_weights ? flops.backward_weights : 0));
      backward_layer(with_weights);
      if (with_weights) {
        reduce_layer(layer);
      }
      release_layer(layer);
    }
    if (stage.embedding) {
      work(kind, kBeforeLayers, flops_.embedding.total());
      whole_tokens(false);
      reduce_layer(kBeforeLayers);
    }
  }

  // ---- what follows the schedule: csrc/train/step.cpp and csrc/optim

  void end_of_step() {
    const TensorSpec& stats = plan_.activations.shared.stats;
    const std::size_t row_bytes = stats.bytes() / static_cast<std::size_t>(stats.dims[0]);
    const Range z = stat_rows(Stat::z, d_.L);
    if (plan_.share.tensor.count > 1) {
      move(exchange,
           Pattern::all_reduce,
           "tensor",
           "step.z_loss",
           static_cast<std::size_t>(z.count) * row_bytes);
    }
    if (plan_.share.data_context.count > 1) {
      move(exchange, Pattern::all_reduce, "data_context", "step.losses", stats.bytes());
    }
    const bool in_stages = plan_.schedule.shape.num_ranks > 1;
    if (in_stages) {
      move(exchange, Pattern::all_reduce, "pipeline", "step.losses", stats.bytes());
    }
    for (const Segment& segment : plan_.parameters.segments) {
      if (segment.tied != Tied::no) {
        move(reduce,
             Pattern::all_reduce,
             kTiedEmbedding,
             "optimizer.tied_gradient",
             gradient_bytes(segment.owned.count));
      }
    }
    if (in_stages) {
      move(exchange,
           Pattern::all_reduce,
           "pipeline",
           "optimizer.norm",
           plan_.norms.layers_LW.bytes());
    }
    if (plan_.share.stage_ranks.count > 1) {
      move(exchange,
           Pattern::all_gather,
           "stage_ranks",
           "optimizer.norm",
           plan_.norms.ranks_PLW.bytes());
    }
    for (const Segment& segment : plan_.parameters.segments) {
      layer_ = segment.layer;
      if (segment.has_state()) {
        operations_.push_back({.kind = update, .layer = segment.layer});
      }
      if (segment.tied != Tied::no) {
        move(gather,
             Pattern::broadcast,
             kTiedEmbedding,
             "optimizer.tied_embedding",
             static_cast<std::size_t>(segment.owned.count) * size_of(segment.dtype));
      }
      if (plan_.parameters.comes_after_step(segment)) {
        move(gather,
             Pattern::all_gather,
             group_of(segment),
             segment.place ? "layer.weights" : "optimizer.weights",
             weight_bytes(segment));
      }
    }
  }

  // ---- the list

  // Of a rank along tensor, which has its part of all that the ranks along it do.
  void work(OperationKind kind, int layer, double flops) {
    layer_ = layer;
    operations_.push_back({.kind = kind,
                           .layer = layer,
                           .micro_batch = micro_batch_,
                           .flops = flops / static_cast<double>(plan_.share.tensor.count *
                                                                plan_.share.context.count)});
  }
  void move(OperationKind kind,
            Pattern pattern,
            std::string_view group,
            std::string_view name,
            std::size_t bytes) {
    operations_.push_back({.kind = kind,
                           .layer = layer_,
                           .micro_batch = micro_batch_,
                           .group = group,
                           .name = name,
                           .pattern = pattern,
                           .bytes = bytes});
  }
  const PassFlops& flops_of(int layer) const {
    return flops_.layers[static_cast<std::size_t>(layer)];
  }

  const Config& config_;
  DType compute_;
  const TrainingPlan& plan_;
  const Dims& d_;
  MicroBatchFlops flops_;
  Residency residency_;
  std::vector<StepOperation> operations_;
  std::vector<std::size_t> turn_ends_;  // in operations_, of the pass of a pair
  int layer_ = kNoLayer;
  std::int64_t micro_batch_ = -1;
};

}  // namespace

std::string_view name_of(OperationKind kind) {
  switch (kind) {
    case forward:
      return "forward";
    case backward:
      return "backward";
    case backward_inputs:
      return "backward of inputs";
    case backward_weights:
      return "backward of weights";
    case recompute:
      return "recompute";
    case update:
      return "update";
    case gather:
      return "gather";
    case release:
      return "release";
    case reduce:
      return "reduce";
    case exchange:
      return "exchange";
    case receive:
      return "receive";
    case send:
      return "send";
  }
  return "";
}

std::vector<StepOperation> step_operations(const Config& config,
                                           DType compute,
                                           const TrainingPlan& plan) {
  return Writer(config, compute, plan).write();
}

double StepOperation::sent_bytes(std::int64_t num_ranks) const {
  const auto whole = static_cast<double>(bytes);
  const double others = static_cast<double>(num_ranks - 1) / static_cast<double>(num_ranks);
  switch (pattern) {
    case Pattern::all_gather:
    case Pattern::reduce_scatter:
    case Pattern::all_to_all:
      return whole * others;
    case Pattern::all_reduce:
      return 2 * whole * others;
    case Pattern::broadcast:
      return kind == receive ? 0 : whole;
  }
  return 0;
}

}  // namespace memphis
