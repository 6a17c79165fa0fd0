// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

#include "csrc/config/config.h"
#include "csrc/model/groups.h"
#include "csrc/model/micro_batch.h"
#include "csrc/model/weight_residency.h"
#include "csrc/plan/activations.h"
#include "csrc/plan/dims.h"
#include "kernels/weight_gradient.h"

namespace memphis {

class GatheredChunks;

struct BlockContext;
struct StreamNorm;

// Who reduces gradients while the backward pass goes on. `layer` is counted in the model: it is the
// number of its layers for what comes after them, the head and the final norm, and kBeforeLayers
// for the embedding.
class GradientSink {
 public:
  virtual ~GradientSink() = default;
  // The layer's gradients are about to be formed; with the head's the embedding's, which may be the
  // same. Those of the layer after it are complete but for its first norm's, or are the head's.
  virtual void before_backward(int layer) = 0;
  // They are complete.
  virtual void after_backward(int layer) = 0;
};

// The model, or what this rank has of it: a sequence of ops over views that somebody else owns, and
// of collectives among ranks that hold the rest of a layer. A call is for the stage of its
// micro-batch; what stages hand each other, csrc/model/pipeline.h moves. Everything is enqueued on
// the stream; nothing is allocated, and nothing waits but for the counts of rows where experts lie
// on several ranks. Every rank of `groups` makes the same calls. What scales losses and gradients is
// read on the device, from shared.step_scalars, where the caller has it copied before.
class Grok {
 public:
  // `activations` were planned with `dims`. All referents must outlive the model.
  Grok(const ModelConfig& model,
       const Dims& dims,
       const Groups& groups,
       WeightResidency& residency,
       const Activations& activations,
       Stream stream);

  // Begins with a micro-batch: copies it to the device. `host` must stay as it is until the stream
  // has passed.
  void load(MicroBatch& batch, const HostBatch& host);

  // Equations (1) to (17), or those of the batch's stage: from the loaded tokens, or from
  // hidden_TD, to output_TD, or to final_in_TD.
  void forward(MicroBatch& batch);

  // (18) and the cross entropy of the loaded targets; adds the step's mean to shared.stats. Of the
  // stage with the head.
  void loss(const MicroBatch& batch);

  // The same up to the cross entropy of each token, in the batch's loss_T; 0 where there is no target.
  void token_losses(const MicroBatch& batch);

  // Adds the means of the auxiliary losses of the stage's layers, a layer's share of the mean over
  // all layers each and without coefficients, to shared.stats.
  void add_auxiliary_losses(const MicroBatch& batch);

  // Both of these, and the gradient of
  //   cross entropy + balance * (all layers' balance losses) + router_z * (all layers' z losses),
  // which is added to the parameters' gradients or, with `write`, takes the place of all that was
  // there. Where head and embedding are one, the head's part is written and the embedding's added.
  // forward() has run. In a stage without the head the gradient of output_TD is in dhidden_TD(); in
  // one without the embedding that of hidden_TD is left there. `sink`, if any, hears how far the
  // backward pass is.
  void backward(MicroBatch& batch,
                kernels::WeightGradient weight_gradient,
                GradientSink* sink = nullptr);

  // The same in two parts, with others between them, and to the same bits: what the stage before
  // waits for, and the gradients of the layers' matrices. `pending` is the batch's from one to the
  // other. Head and embedding are formed with the first. Both parts are told the same of weights'
  // gradients.
  void backward_inputs(MicroBatch& batch,
                       const PendingWeights& pending,
                       kernels::WeightGradient weight_gradient,
                       GradientSink* sink = nullptr);
  void backward_weights(MicroBatch& batch,
                        const PendingWeights& pending,
                        kernels::WeightGradient weight_gradient,
                        GradientSink* sink = nullptr);

  // forward() of one micro-batch and, of another, backward() or, with `pending`, backward_inputs():
  // to the same bits, and while rows of one are on their way to their experts, or back, the other
  // is at work. The plan was made for it (ActivationPlan::paired). `turn`, if any, hears whose work
  // follows.
  enum class Turn : std::uint8_t { forward, backward };
  void forward_beside_backward(MicroBatch& forward_batch,
                               MicroBatch& backward_batch,
                               const PendingWeights* pending,
                               kernels::WeightGradient weight_gradient,
                               GradientSink* sink = nullptr,
                               const std::function<void(Turn)>& turn = {});
  const TensorView& dhidden_TD() const { return activations_.backward.dhidden_TD; }

  // (18): logits of one token, [V] in the accumulation dtype; a view that is valid until the next
  // call. The plan was made for inference (Keep::one_layer).
  TensorView logits(const MicroBatch& batch, std::int64_t token);

  // The same of tokens [begin, begin + count), [count, V], where the vocabulary is not cut. `begin` is
  // a multiple of 8, and count at most dims().head_chunk.
  TensorView logits_of_rows(const MicroBatch& batch, std::int64_t begin, std::int64_t count);

  const Dims& dims() const { return dims_; }
  const Activations& activations() const { return activations_; }

 private:
  // A pass of a stage, from one exchange of rows to the next.
  class ForwardPass;
  class BackwardPass;

  BlockContext block_context(const MicroBatch& batch) const;
  void enter(const char* phase, int layer) const;
  // What the residual stream meets before that layer of the batch's stage, or at the end of them.
  StreamNorm norm_before(const MicroBatch& batch, std::size_t i) const;
  void embed(const MicroBatch& batch);
  void add_cross_entropy(const MicroBatch& batch);
  void backward_of_head(const MicroBatch& batch, kernels::WeightGradient weight_gradient);
  void backward_of_embedding(const MicroBatch& batch, kernels::WeightGradient weight_gradient);
  // Logits [first, first + count) of a chunk of tokens that begins with `begin` of all tokens'
  // final_in_TD; and the first `count` of them, as these come.
  void head_product(const TensorView& final_TD,
                    std::int64_t begin,
                    std::int64_t first,
                    std::int64_t count);
  void head_product(GatheredChunks& final_in, std::int64_t begin, std::int64_t count);
  void join_vocabulary(const MicroBatch& batch,
                       std::int64_t begin,
                       std::int64_t count,
                       TensorView& lse_T,
                       TensorView& target_T);
  void cross_entropy_of_chunk(const MicroBatch& batch,
                              GatheredChunks& final_in,
                              std::int64_t begin,
                              std::int64_t count,
                              bool with_gradient);

  const ModelConfig& model_;
  Dims dims_;
  const Groups& groups_;
  WeightResidency& residency_;
  const Parameters& parameters_;
  const Activations& activations_;
  Stream stream_;
};

}  // namespace memphis
