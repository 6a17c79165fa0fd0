// SPDX-License-Identifier: Apache-2.0
//
// Grok, from tokens to the gradient of every parameter. The forward pass, with the numbers that the
// sources of this folder refer to (h the residual stream [T, D]; RMSNorm(x; g) = g x / rms(x)):
//
//    (1) key s is visible to query t if s <= t, both lie in one document, and s is not the pad id
//    (2) h = Emb[tokens] * m_emb
//   each layer:
//    (3) u = RMSNorm(h; g0)                                                           block.cpp
//    (4) q, k, v = u Wq, u Wk, u Wv                                                   attention.cpp
//    (5) q, k = rope(q), rope(k)
//    (6) z = (q . k) * m_attn            query head n reads key/value head n / (N / G)
//    (7) z = 30 tanh(z / 30)
//    (8) p = softmax(z over visible keys), f32
//    (9) a = (p v) Wo
//   (10) h = h + RMSNorm(a; g1)                                                       block.cpp
//   (11) u = RMSNorm(h; g2)
//   (12) P = softmax(u Wr over all experts), f32                                      moe.cpp
//   (13) gate, expert = the K largest of P, not renormalised
//   (14) y_e = (gelu(u Wg_e) * (u Wv_e)) Wd_e
//   (15) m = sum_k gate_k y_{expert_k};  Grok-2: m = (m + dense FFN(u)) / sqrt(2)
//   (16) h = h + RMSNorm(m; g3)                                                       block.cpp
//   after the last layer:
//   (17) h = RMSNorm(h; g_final)
//   (18) logits = cap(m_out * h Emb^T)   (Grok-2: a head of its own; cap 50)
//
// Where ranks share the work, a tensor has on each rank the size that the plan gives it, and the
// calls of regions.h move tokens between them: nothing else here knows of ranks.
//
// Source: xai-org/grok-1, model.py; for Grok-2, SGLang's grok.py.
#include "csrc/model/grok.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "csrc/core/error.h"
#include "csrc/model/block.h"
#include "csrc/model/key_value_cache.h"
#include "csrc/model/regions.h"
#include "kernels/embedding/embedding.h"
#include "kernels/global_norm/global_norm.h"
#include "kernels/permute/permute.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "kernels/rope/rope.h"
#include "kernels/router/router.h"

namespace memphis {

using namespace kernels;

static_assert(ScratchRows::rmsnorm_partials == kRmsNormPartials);
static_assert(ScratchRows::router_partials == kRouterPartials);
static_assert(ScratchRows::permute_chunks == kPermuteChunks);
static_assert(ScratchRows::global_norm_partials == kGlobalNormPartials);

namespace {

// `layer` with those of `places` that there are.
Layer with_places_of(const Layer& places, const Layer& layer) {
  Layer result = layer;
  Layer::for_each(places, result, [](const TensorView& place, TensorView& view) {
    if (place.present()) {
      view = place;
    }
  });
  return result;
}

}  // namespace

Grok::Grok(const ModelConfig& model,
           const Dims& dims,
           const Groups& groups,
           WeightResidency& residency,
           const Activations& activations,
           Stream stream)
    : model_(model),
      dims_(dims),
      groups_(groups),
      residency_(residency),
      parameters_(residency.parameters()),
      activations_(activations),
      stream_(stream) {
  if (const TensorView& keys_P = activations_.shared.part_keys_P; keys_P.present()) {
    const std::vector<std::int32_t> counts(static_cast<std::size_t>(keys_P.num_elements()),
                                           static_cast<std::int32_t>(dims_.S));
    device_copy(keys_P.data, counts.data(), keys_P.bytes(), stream_);
    synchronize(stream_);
  }
  rope_table({.table_SH = activations_.shared.rope_table_SH, .theta = model_.rope_theta}, stream_);
}

void Grok::load(MicroBatch& batch, const HostBatch& host) {
  const auto copy = [&](const TensorView& to, const auto& from) {
    if (to.present()) {
      require(static_cast<std::int64_t>(from.size()) == to.num_elements(),
              "a batch has B * S tokens, and keys of whole sequences");
      device_copy(to.data, from.data(), to.bytes(), stream_);
    }
  };
  copy(batch.tensors.tokens_T, host.tokens_T);
  copy(batch.tensors.targets_T, host.targets_T);
  copy(batch.tensors.position_T, host.positions_T);
  copy(batch.tensors.valid_T, host.valid_T);
  copy(batch.tensors.place_T, host.places_T);
  const bool by_number = dims_.key_exchange == ContextExchange::ring;
  copy(batch.tensors.key_valid_U, by_number ? host.numbered_valid_U : host.key_valid_U);
  copy(batch.tensors.key_position_U, host.key_position_U);
  copy(batch.tensors.key_place_U, host.key_place_U);
  copy(batch.tensors.key_number_U, host.key_number_U);
  copy(batch.tensors.key_of_number_U, host.key_of_number_U);
  const TensorView& keys = dims_.exchange_keys ? batch.tensors.key_valid_U : batch.tensors.valid_T;
  batch.key_valid_U = host.any_padding ? keys : TensorView{};
  batch.routed_valid_T = host.any_padding ? batch.tensors.valid_T : TensorView{};
  if (host.any_padding && batch.tensors.routed_valid_T.present()) {
    batch.routed_valid_T = batch.tensors.routed_valid_T;
    copy_piece(block_context(batch), batch.routed_valid_T, batch.tensors.valid_T);
  }
}

BlockContext Grok::block_context(const MicroBatch& batch) const {
  return {.model = model_,
          .dims = dims_,
          .groups = groups_,
          .batch = batch.tensors,
          .shared = activations_.shared,
          .scratch = activations_.backward,
          .key_valid_U = batch.key_valid_U,
          .routed_valid_T = batch.routed_valid_T,
          .cached = batch.cached,
          .cached_UCH = {},
          .stream = stream_,
          .rows = row_places(activations_.shared)};
}

// What is no layer has a phase of its own name.
void Grok::enter(const char* phase, int layer) const {
  groups_.activity().enter(phase, layer < dims_.L ? layer : -1);
}

StreamNorm Grok::norm_before(const MicroBatch& batch, std::size_t i) const {
  if (i < batch.layers.size()) {
    const Layer& layer = batch.layers[i];
    return {.out_TD = layer.attention_in_TD,
            .rrms_T = layer.attention_in_rrms_T,
            .weight_D = parameters_.weights().layers[batch.first_layer + i].pre_attention_norm_D};
  }
  if (batch.stage.head) {
    return {.out_TD = batch.tensors.final_in_TD,
            .rrms_T = batch.tensors.final_rrms_T,
            .weight_D = parameters_.weights().final_norm_D,
            .last = true};
  }
  return {};
}

// (2)
void Grok::embed(const MicroBatch& batch) {
  const BlockContext context = block_context(batch);
  embedding_forward({.y_TD = term_of(context, batch.tensors.hidden_TD),
                     .weight_VD = parameters_.weights().embedding_VD,
                     .tokens_T = batch.tensors.tokens_T,
                     .multiplier = static_cast<float>(model_.embedding_multiplier),
                     .vocab_begin = dims_.local_V.begin,
                     .vocab_size = dims_.V},
                    stream_);
  sum_terms(context, batch.tensors.hidden_TD);
}

// (2) to (17), or those of the batch's stage.
class Grok::ForwardPass {
 public:
  // With `under_way` it stops where rows are on their way, and works in places of its own. The
  // backward pass of a layer that sends its rows again has three exchanges where this one has two:
  // it rests once more, so that each of them has work beside it.
  ForwardPass(Grok& model, MicroBatch& batch, RowsUnderWay* under_way)
      : model_(model),
        batch_(batch),
        context_(model.block_context(batch)),
        num_parts_(kParts.size() * batch.layers.size()) {
    if (under_way != nullptr) {
      const SharedActivations<TensorView>& shared = model.activations_.shared;
      require(shared.forward_sent_RD.present(),
              "passes are paired where the plan has room for two");
      context_.under_way = under_way;
      rests_ = model.activations_.recompute.sends_again();
      context_.rows = forward_row_places(shared);
    }
  }

  // Goes on until rows are on their way, or to the end: then it returns false.
  bool go_on() {
    if (next_ == 0) {
      begin();
    }
    comes_back_ = next_ > 0;
    while (next_ < num_parts_) {
      const ForwardPart part = kParts[next_ % kParts.size()];
      do_part(next_ / kParts.size(), part);
      ++next_;
      if ((context_.under_way != nullptr && context_.under_way->any()) ||
          (rests_ && part == ForwardPart::attention)) {
        return true;
      }
    }
    return false;
  }

 private:
  static constexpr std::array kParts = {
      ForwardPart::attention, ForwardPart::send, ForwardPart::experts, ForwardPart::join};

  std::optional<int> layer_at(std::size_t i) const {
    return i < batch_.layers.size() ? std::optional(batch_.layer_at(i)) : std::nullopt;
  }
  // Of the layer, where this pass has it.
  Layer places_of(std::size_t i) const {
    const Layer& kept = batch_.layers[i];
    return context_.under_way != nullptr
               ? with_places_of(model_.activations_.forward_places[batch_.first_layer + i], kept)
               : kept;
  }
  const LayerWeights& weights_of(std::size_t i) const {
    return model_.parameters_.weights().layers[batch_.first_layer + i];
  }

  void begin() {
    if (batch_.stage.embedding) {
      model_.enter("forward of the embedding", kBeforeLayers);
      const auto use = model_.residency_.acquire(kBeforeLayers, layer_at(0));
      model_.embed(batch_);
    }
    norms_before(0);
  }

  void do_part(std::size_t i, ForwardPart part) {
    if (part == ForwardPart::attention && batch_.cached.cache != nullptr) {
      context_.cached_UCH = batch_.cached.cache->layer(batch_.first_layer + i);
    }
    if (std::exchange(comes_back_, false)) {
      model_.enter("forward", batch_.layer_at(i));
    }
    block_forward(
        context_, part, weights_of(i), places_of(i), batch_.exchanges[i], batch_.hidden_before(i));
    if (part == ForwardPart::join) {
      norms_before(i + 1);
    }
  }

  // (16) of the layer before, (3) of layer i, or (17): from here on that one is in use.
  void norms_before(std::size_t i) {
    StreamNorm norm = model_.norm_before(batch_, i);
    std::optional<WeightResidency::Use> use;
    if (norm.present()) {
      const std::optional<int> layer = layer_at(i);
      const int index = layer.value_or(static_cast<int>(model_.dims_.L));
      model_.enter(layer ? "forward" : "forward of the head", index);
      // Where another one is in use it holds the place of what comes after this one.
      use = model_.residency_.acquire(index, use_ ? std::nullopt : layer_at(i + 1));
      if (layer) {
        norm.out_TD = places_of(i).attention_in_TD;
      }
    }
    if (i > 0) {
      block_end_forward(context_, weights_of(i - 1), places_of(i - 1), norm);
    } else if (norm.present()) {
      stream_norm_forward(context_, norm, batch_.hidden_before(0));
    }
    use_ = std::move(use);
    if (const std::optional<int> next = layer_at(i + 1)) {
      model_.residency_.expect(*next);
    }
  }

  Grok& model_;
  MicroBatch& batch_;
  BlockContext context_;
  std::size_t num_parts_;
  std::size_t next_ = 0;
  bool rests_ = false;
  bool comes_back_ = false;                  // another pass has been at work
  std::optional<WeightResidency::Use> use_;  // the layer's
};

void Grok::forward(MicroBatch& batch) {
  ForwardPass(*this, batch, nullptr).go_on();
}

void Grok::add_auxiliary_losses(const MicroBatch& batch) {
  const SharedActivations<TensorView>& shared = activations_.shared;
  for (std::size_t i = 0; i < batch.layers.size(); ++i) {
    const Layer& layer = batch.layers[i];
    sum_all({.total_1 = stat_view(shared, Stat::balance, batch.layer_at(i)),
             .x_n = layer.balance_B,
             .scale_1 = step_scalar_view(shared, StepScalar::balance_mean),
             .accumulate = true},
            stream_);
    sum_all({.total_1 = stat_view(shared, Stat::z, batch.layer_at(i)),
             .x_n = layer.z_T,
             .scale_1 = step_scalar_view(shared, StepScalar::z_mean),
             .accumulate = true},
            stream_);
  }
}

// Adds to what the head has written where the two are one. No head is behind the embedding of its
// micro-batch, so the first contribution to their gradient is the head's in any schedule.
void Grok::backward_of_embedding(const MicroBatch& batch, WeightGradient weight_gradient) {
  embedding_backward(
      {.dweight_VD = parameters_.gradients().embedding_VD,
       .dy_TD = whole_tokens(block_context(batch), dhidden_TD()),
       .tokens_T = batch.tensors.tokens_T,
       .order_T = activations_.backward.embedding_order_T,
       .multiplier = static_cast<float>(model_.embedding_multiplier),
       .vocab_begin = dims_.local_V.begin,
       .vocab_size = dims_.V,
       .weight_gradient =
           parameters_.plan().head_is_embedding() ? WeightGradient::add : weight_gradient},
      stream_);
}

// The gradients of a stage, of the inputs and, without `pending`, of the weights.
class Grok::BackwardPass {
 public:
  // With `under_way` it stops where rows are on their way.
  BackwardPass(Grok& model,
               MicroBatch& batch,
               const PendingWeights* pending,
               WeightGradient weight_gradient,
               GradientSink* sink,
               RowsUnderWay* under_way)
      : model_(model),
        batch_(batch),
        pending_(pending),
        weight_gradient_(weight_gradient),
        sink_(sink),
        context_(model.block_context(batch)),
        in_scratch_(gradients_in_scratch(model.activations_.shared, model.activations_.backward)),
        num_parts_(kParts.size() * batch.layers.size()) {
    context_.weight_gradient = weight_gradient;
    context_.under_way = under_way;
  }

  // Goes on until rows are on their way, or to the end: then it returns false.
  bool go_on() {
    comes_back_ = next_ > 0;
    if (!comes_back_) {
      begin();
    }
    while (next_ < num_parts_) {
      do_part(batch_.layers.size() - 1 - next_ / kParts.size(), kParts[next_ % kParts.size()]);
      ++next_;
      if (context_.under_way != nullptr && context_.under_way->any()) {
        return true;
      }
    }
    if (batch_.stage.embedding) {
      // Its gradients were begun with the head's.
      model_.enter("backward of the embedding", kBeforeLayers);
      model_.backward_of_embedding(batch_, weight_gradient_);
      end_layer(kBeforeLayers);
    }
    return false;
  }

 private:
  enum class Part : std::uint8_t { again_send, again_experts, send, experts, join };
  static constexpr std::array kParts = {
      Part::again_send, Part::again_experts, Part::send, Part::experts, Part::join};

  std::size_t num_layers() const { return batch_.layers.size(); }
  const LayerWeights& weights_of(std::size_t i) const {
    return model_.parameters_.weights().layers[batch_.first_layer + i];
  }
  const LayerWeights& gradients_of(std::size_t i) const {
    return model_.parameters_.gradients().layers[batch_.first_layer + i];
  }
  void before_layer(int layer) {
    if (sink_ != nullptr) {
      sink_->before_backward(layer);
    }
  }
  void end_layer(int layer) {
    if (sink_ != nullptr) {
      sink_->after_backward(layer);
    }
  }

  void begin() {
    if (batch_.stage.head) {
      const auto head = static_cast<int>(model_.dims_.L);
      model_.enter("loss and backward of the head", head);
      use_ = model_.residency_.acquire(
          head, num_layers() > 0 ? std::optional(batch_.layer_at(num_layers() - 1)) : std::nullopt);
      before_layer(head);
      model_.backward_of_head(batch_, weight_gradient_);
    } else if (num_layers() > 0) {
      model_.enter("backward", batch_.layer_at(num_layers() - 1));
    }
    norms_before(num_layers());
    model_.add_auxiliary_losses(batch_);
  }

  // (3) of layer i, or (17), and (16) of the layer before: this is then the one in use, and the
  // gradients of the former are complete.
  void norms_before(std::size_t i) {
    StreamNorm norm = model_.norm_before(batch_, i);
    const bool of_head = i == num_layers();
    if (norm.present()) {
      norm.dweight_D = of_head ? model_.parameters_.gradients().final_norm_D
                               : gradients_of(i).pre_attention_norm_D;
    }
    std::optional<WeightResidency::Use> use;
    if (i > 0) {
      const int before = batch_.layer_at(i - 1);
      use = model_.residency_.acquire(before);
      before_layer(before);
      block_end_backward(
          context_, weights_of(i - 1), gradients_of(i - 1), batch_.layers[i - 1], norm);
    } else if (norm.present()) {
      stream_norm_backward(context_, norm, batch_.hidden_before(0));
    }
    if (norm.present() && (of_head || pending_ == nullptr)) {
      end_layer(of_head ? static_cast<int>(model_.dims_.L) : batch_.layer_at(i));
    }
    use_ = std::move(use);
    if (i > 1) {
      model_.residency_.expect(batch_.layer_at(i - 2));
    }
  }

  void do_part(std::size_t i, Part part) {
    const int index = batch_.layer_at(i);
    const LayerWeights& weights = weights_of(i);
    const PendingWeights::Layer* const later = pending_ != nullptr ? &pending_->layers[i] : nullptr;
    const Layer layer =
        later != nullptr ? with_places_of(later->again, batch_.layers[i]) : batch_.layers[i];
    ExpertExchange& exchange = batch_.exchanges[i];
    const bool comes_back = std::exchange(comes_back_, false);
    const auto backward_part = [&](BackwardPart which) {
      block_backward(context_,
                     which,
                     weights,
                     gradients_of(i),
                     layer,
                     exchange,
                     later != nullptr ? later->gradients : in_scratch_,
                     later != nullptr ? Backward::inputs : Backward::all);
    };
    const auto again_part = [&](RecomputePart which, bool enters) {
      const RecomputeGroups again = model_.activations_.recompute.of_layer(index);
      if (again.any()) {
        if (enters) {
          model_.enter("recompute", index);
        }
        block_recompute(context_, which, weights, layer, exchange, batch_.hidden_before(i), again);
      }
    };
    switch (part) {
      case Part::again_send:
        again_part(RecomputePart::send, true);
        return;
      case Part::again_experts:
        again_part(RecomputePart::experts, comes_back);
        return;
      case Part::send:
        model_.enter("backward", index);
        backward_part(BackwardPart::send);
        return;
      case Part::experts:
      case Part::join:
        if (comes_back) {
          model_.enter("backward", index);
        }
        backward_part(part == Part::experts ? BackwardPart::experts : BackwardPart::join);
        if (part == Part::join) {
          norms_before(i);
        }
        return;
    }
  }

  Grok& model_;
  MicroBatch& batch_;
  const PendingWeights* pending_;
  WeightGradient weight_gradient_;
  GradientSink* sink_;
  BlockContext context_;
  LayerGradients<TensorView> in_scratch_;
  std::size_t num_parts_;
  std::size_t next_ = 0;
  bool comes_back_ = false;                  // another pass has been at work
  std::optional<WeightResidency::Use> use_;  // the layer's
};

void Grok::backward(MicroBatch& batch, WeightGradient weight_gradient, GradientSink* sink) {
  BackwardPass(*this, batch, nullptr, weight_gradient, sink, nullptr).go_on();
}

void Grok::backward_inputs(MicroBatch& batch,
                           const PendingWeights& pending,
                           WeightGradient weight_gradient,
                           GradientSink* sink) {
  BackwardPass(*this, batch, &pending, weight_gradient, sink, nullptr).go_on();
}

// With turns from one exchange to the next each has a part of the other pass beside it. The
// backward pass goes first: experts are then beside the dispatch and the combine of the other pass,
// attention beside what its experts give back, and at the end the backward pass of the first
// layer's attention beside the last combine, where it would else be a norm.
void Grok::forward_beside_backward(MicroBatch& forward_batch,
                                   MicroBatch& backward_batch,
                                   const PendingWeights* pending,
                                   WeightGradient weight_gradient,
                                   GradientSink* sink,
                                   const std::function<void(Turn)>& turn) {
  RowsUnderWay forward_rows;
  RowsUnderWay backward_rows;
  ForwardPass forward(*this, forward_batch, &forward_rows);
  BackwardPass backward(*this, backward_batch, pending, weight_gradient, sink, &backward_rows);
  const auto take_turn = [&](Turn which, auto& pass) {
    if (turn) {
      turn(which);
    }
    return pass.go_on();
  };
  for (bool forward_left = true, backward_left = true; forward_left || backward_left;) {
    backward_left = backward_left && take_turn(Turn::backward, backward);
    forward_left = forward_left && take_turn(Turn::forward, forward);
  }
}

void Grok::backward_weights(MicroBatch& batch,
                            const PendingWeights& pending,
                            WeightGradient weight_gradient,
                            GradientSink* sink) {
  BlockContext context = block_context(batch);
  context.weight_gradient = weight_gradient;
  for (std::size_t i = batch.layers.size(); i-- > 0;) {
    const int index = batch.layer_at(i);
    enter("backward of weights", index);
    block_backward_weights(context,
                           parameters_.gradients().layers[batch.first_layer + i],
                           with_places_of(pending.layers[i].again, batch.layers[i]),
                           batch.exchanges[i],
                           pending.layers[i].gradients);
    if (sink != nullptr) {
      sink->after_backward(index);
    }
  }
}

}  // namespace memphis
