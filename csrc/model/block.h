// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include "csrc/config/config.h"
#include "csrc/core/tensor.h"
#include "csrc/model/groups.h"
#include "csrc/model/key_value_cache.h"
#include "csrc/plan/activations.h"
#include "csrc/plan/dims.h"
#include "csrc/plan/parameters.h"
#include "kernels/weight_gradient.h"

namespace memphis {

// Rows as this rank sends and as it receives them, and the gates that go with them, each [sent_R,
// D], [sent_R, 1] and [local_R, D]: a pass has its own while another one is at work.
struct RowPlaces {
  TensorView sent_RD;
  TensorView sent_gates_R1;
  TensorView received_RD;
};

// Of a pass that no other is beside, and of a backward pass; and of a forward pass beside one.
inline RowPlaces row_places(const SharedActivations<TensorView>& shared) {
  return {.sent_RD = shared.sent_RD,
          .sent_gates_R1 = shared.sent_gates_R1,
          .received_RD = shared.received_RD};
}
inline RowPlaces forward_row_places(const SharedActivations<TensorView>& shared) {
  return {.sent_RD = shared.forward_sent_RD,
          .sent_gates_R1 = shared.forward_sent_gates_R1,
          .received_RD = shared.forward_received_RD};
}

class RowsUnderWay;

// What every layer of a model has in common. Numbers in parentheses are the equations of Grok-1's
// forward pass as grok.cpp lists them.
struct BlockContext {
  const ModelConfig& model;
  const Dims& dims;
  const Groups& groups;
  const BatchActivations<TensorView>& batch;
  const SharedActivations<TensorView>& shared;
  const BackwardScratch<TensorView>& scratch;  // absent views for inference
  TensorView key_valid_U;                      // absent where no token is the pad id
  TensorView routed_valid_T;                   // of the routed tokens
  CachedSequences cached = {};                 // their keys and values of the layer are
  TensorView cached_UCH = {};                  // here; absent but for inference
  Stream stream;
  RowPlaces rows = {};
  // Where the exchanges of rows are begun alone, and waited for by the part of the layer that comes
  // next; null where each is done at once.
  RowsUnderWay* under_way = nullptr;
  // Of a backward pass, in both its parts: one op forms the gradient of a tensor, in one call.
  kernels::WeightGradient weight_gradient = kernels::WeightGradient::add;
};

using LayerWeights = LayerParameters<TensorView>;
using Layer = LayerActivations<TensorView>;
class ExpertExchange;
struct WeightProduct;

// Which gradients a backward pass forms, beside those of norm gains and the router's weight. Those of
// the other weights nobody waits for: they can be formed later, from what the layer has kept and
// from `kept`, gradients of its activations that have a place of their own until then. Whether apart
// or together, the same bits.
enum class Backward : std::uint8_t { all, inputs };

// out = attention(in) W_o: equations (4) to (9), from layer.attention_in_TD to
// layer.attention_out_TD.
void attention_branch_forward(const BlockContext& context,
                              const LayerWeights& weights,
                              const Layer& layer);
// What of it `groups` says that the layer has not kept.
void attention_branch_recompute(const BlockContext& context,
                                const LayerWeights& weights,
                                const Layer& layer,
                                const RecomputeGroups& groups);
// From the gradient of attention_out (kept.dattention_out_TD) to that of attention_in
// (scratch.dbranch_in_TD) and of the weights, as context.weight_gradient says.
void attention_branch_backward(const BlockContext& context,
                               const LayerWeights& weights,
                               const LayerWeights& gradients,
                               const Layer& layer,
                               const LayerGradients<TensorView>& kept,
                               Backward which);
// The weights' gradients by themselves, for WeightProducts of tensor_products.h.
std::array<WeightProduct, 2> attention_branch_weight_products(
    const BlockContext& context,
    const LayerWeights& gradients,
    const Layer& layer,
    const LayerGradients<TensorView>& kept);

// Router, experts and the dense FFN beside them: equations (12) to (15), from layer.moe_in_TD to
// layer.moe_out_TD. `exchange` is the layer's, and remembers where its rows went.
//
// The pass is cut where rows are on their way, so that others can compute meanwhile: each part
// begins with rows that the one before has sent, and what lies in context.rows is its own until
// then.
void moe_branch_send(const BlockContext& context,
                     const LayerWeights& weights,
                     const Layer& layer,
                     ExpertExchange& exchange);
void moe_branch_experts(const BlockContext& context,
                        const LayerWeights& weights,
                        const Layer& layer,
                        const ExpertExchange& exchange);
void moe_branch_join(const BlockContext& context,
                     const LayerWeights& weights,
                     const Layer& layer,
                     ExpertExchange& exchange);
// As above, in two parts. Which experts take a token and what they made of it together are kept in
// every case.
void moe_branch_recompute_send(const BlockContext& context,
                               const Layer& layer,
                               const ExpertExchange& exchange,
                               const RecomputeGroups& groups);
void moe_branch_recompute_experts(const BlockContext& context,
                                  const LayerWeights& weights,
                                  const Layer& layer,
                                  const ExpertExchange& exchange,
                                  const RecomputeGroups& groups);
// As above; scratch.dbranch_TD to scratch.dbranch_in_TD. The auxiliary losses' gradients join here,
// scaled by context.shared.step_scalars.
void moe_branch_backward_send(const BlockContext& context,
                              const Layer& layer,
                              const ExpertExchange& exchange,
                              const LayerGradients<TensorView>& kept);
void moe_branch_backward_experts(const BlockContext& context,
                                 const LayerWeights& weights,
                                 const LayerWeights& gradients,
                                 const Layer& layer,
                                 const ExpertExchange& exchange,
                                 const LayerGradients<TensorView>& kept,
                                 Backward which);
void moe_branch_backward_join(const BlockContext& context,
                              const LayerWeights& weights,
                              const LayerWeights& gradients,
                              const Layer& layer,
                              const ExpertExchange& exchange,
                              const LayerGradients<TensorView>& kept,
                              Backward which);
// The same of the experts' weights, formed, and of the dense FFN's where there is one.
void experts_weight_products(const BlockContext& context,
                             const LayerWeights& gradients,
                             const Layer& layer,
                             const ExpertExchange& exchange,
                             const LayerGradients<TensorView>& kept);
std::array<WeightProduct, 2> dense_weight_products(const BlockContext& context,
                                                   const LayerWeights& gradients,
                                                   const Layer& layer,
                                                   const LayerGradients<TensorView>& kept);

// What the residual stream is normed with on its way into a layer, (3), or into the head, (17).
struct StreamNorm {
  TensorView out_TD;          // of a forward pass
  TensorView rrms_T;          // likewise, read by the backward pass
  TensorView weight_D;        // absent: what follows is another stage's
  TensorView dweight_D = {};  // of a backward pass
  bool last = false;          // the stream ends here: its gradient is this norm's alone

  bool present() const { return weight_D.present(); }
};
// Where a stage begins.
void stream_norm_forward(const BlockContext& context,
                         const StreamNorm& norm,
                         const TensorView& hidden_TD);
// dhidden_TD, which holds the stream's gradient unless the norm is the last, from dbranch_in_TD.
void stream_norm_backward(const BlockContext& context,
                          const StreamNorm& norm,
                          const TensorView& hidden_TD);
// Where a layer ends, (16) to layer.out_TD, and what follows begins: in one pass, to the bits of two.
// The backward pass leaves the gradient of the layer's out_TD in dhidden_TD, as above, and that of
// its moe_out_TD in dbranch_TD.
void block_end_forward(const BlockContext& context,
                       const LayerWeights& weights,
                       const Layer& layer,
                       const StreamNorm& next);
void block_end_backward(const BlockContext& context,
                        const LayerWeights& weights,
                        const LayerWeights& gradients,
                        const Layer& layer,
                        const StreamNorm& next);

// One layer between these: attention_in_TD and the residual stream hidden_TD to moe_out_TD and
// residual_TD, both branches with the norms between them. The parts of the MoE branch are those of
// the layer: up to where rows are sent, what experts do, and what follows. The attention branch is
// one before them.
enum class ForwardPart : std::uint8_t { attention, send, experts, join };
void block_forward(const BlockContext& context,
                   ForwardPart part,
                   const LayerWeights& weights,
                   const Layer& layer,
                   ExpertExchange& exchange,
                   const TensorView& hidden_TD);
// What `groups` names, from hidden_TD and what the layer has kept: the same ops on the same operands
// as in block_forward, so the same bits. To be called right before block_backward.
enum class RecomputePart : std::uint8_t { send, experts };
void block_recompute(const BlockContext& context,
                     RecomputePart part,
                     const LayerWeights& weights,
                     const Layer& layer,
                     const ExpertExchange& exchange,
                     const TensorView& hidden_TD,
                     const RecomputeGroups& groups);
// After block_end_backward: scratch.dhidden_TD holds the gradient of layer.out_TD on entry and that
// of hidden_TD on return from the last part, without what comes through attention_in_TD, whose
// gradient is in scratch.dbranch_in_TD.
enum class BackwardPart : std::uint8_t { send, experts, join };
void block_backward(const BlockContext& context,
                    BackwardPart part,
                    const LayerWeights& weights,
                    const LayerWeights& gradients,
                    const Layer& layer,
                    const ExpertExchange& exchange,
                    const LayerGradients<TensorView>& kept,
                    Backward which);
// What block_backward has left out, with its `layer` and `kept` as it has left them.
void block_backward_weights(const BlockContext& context,
                            const LayerWeights& gradients,
                            const Layer& layer,
                            const ExpertExchange& exchange,
                            const LayerGradients<TensorView>& kept);

}  // namespace memphis
