// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/tensor.h"
#include "csrc/plan/dims.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/share.h"

namespace memphis {

// Where every parameter lies, from the config and a rank's share alone.
//
// All parameters of a rank share one index space of elements, [0, num_elements). Weights, master
// weights, moments and gradients are flat arrays over it, so an optimizer step, a gradient norm or
// a collective is a run of that space and not a list of tensors. It is cut into segments of one
// dtype, one decay rule and one group of ranks that hold the same elements: these sum their
// gradients and, under ZeRO-1, each keep the optimizer's state of an equal piece. A segment is also
// the unit of what moves under way, a bucket: it holds tensors of one layer, so its gradient is
// complete once the backward pass has left the layer, and its weights are needed once a pass comes
// there. Gradients of a layer's segments that one group sums move in one call. The pieces of a layer
// are the same in every ZeRO stage and in every pipeline, so equal gradients have a norm of equal
// bits.
//
// Gradients lie as the parameters do. Under ZeRO-2 only what a rank keeps of the sums has a place
// of its own for the whole step; layers take turns in two places where their gradients are formed.
// Under ZeRO-3 it is the same with their weights: what a rank keeps of them has a place of its own,
// and layers take turns where they are whole.
//
// A tensor that the model multiplies by (`Placement`) may hold several logical parameters, the
// tensors of the Hugging Face form B (`LogicalParameter`), one behind the other: q, k and v are one
// product, gate and up of an expert are one product.

// Where the model is cut into stages, a rank has the tensors of its own.
//
// An embedding that is the head too, and whose two uses lie on two ranks, lies on both. The second
// rank's copy is a segment that has a gradient and no optimizer's state: it takes part in no norm
// and in no checkpoint. The two gradients are summed once a step, piece by piece, after each has
// been reduced over its replicas, and the weights come from the first rank (Tied).

// Layers are counted in the whole model, in the order of the forward pass, on every rank; the
// embedding comes before them, the final norm and a head of its own after.
constexpr int kBeforeLayers = -1;

// Of the matrix that two ranks of a pipeline have.
enum class Tied : std::uint8_t { no, original, copy };

struct Segment {
  DType dtype = DType::f32;  // of the weights
  bool decay = false;        // weight decay applies
  std::int64_t begin = 0;    // element index
  std::int64_t num_elements = 0;
  Axis replicas = Axis::data_context;  // who holds the same elements, and sums its gradients
  Range piece = {};                    // this rank's of as many pieces as there are replicas
  Range owned = {};                    // whose optimizer state this rank keeps: the piece, or all
  int layer = kBeforeLayers;           // whose tensors it holds
  std::int64_t gradient_begin = 0;     // element of the array that gradients are formed in
  std::int64_t sum_begin = 0;          // ZeRO-2: element of the array of sums; of `owned`
  Tied tied = Tied::no;
  // ZeRO-3: where the weights are whole while their layer is at work, and the bytes before them
  // there. Those of other segments always are.
  std::optional<std::size_t> place = {};
  std::size_t place_offset = 0;

  bool replicated() const { return piece.count < num_elements; }
  // Its replicas keep a piece of the optimizer's state each.
  bool sharded() const { return owned.count < num_elements; }
  bool has_state() const { return tied != Tied::copy; }
};

struct Placement {
  TensorSpec spec;
  std::int64_t begin = 0;  // element index
  int segment = 0;
  bool present() const { return spec.present(); }
};

struct LogicalParameter {
  std::string name;  // "model.layers.0.self_attn.q_proj.weight"
  TensorSpec whole;  // of the model
  int cut_dim = 0;   // this rank holds elements `cut` of this dim, and all of the others
  Range cut;
  TensorSpec spec;         // of this rank's part
  std::int64_t begin = 0;  // element index
  int segment = 0;
  double init_std = 0;  // N(0, init_std^2); 0: ones (a norm's gain)

  // What `run`, of a rank's elements, has of this part, counted from the part's first element.
  Range local(const Range& run) const {
    const Range held = intersection({.begin = begin, .count = spec.num_elements()}, run);
    return {.begin = held.begin - begin, .count = held.count};
  }
};

// One layer's parameters; T is a Placement, or a view of weights or gradients.
template <class T>
struct LayerParameters {
  T pre_attention_norm_D;
  T qkv_CD;            // [C * H, D]: q heads, k heads, v heads
  T attention_out_DN;  // [D, N * H]
  T post_attention_norm_D;
  T pre_moe_norm_D;
  T router_ED;
  T gate_up_EFD;  // [E, 2F, D]: of each expert the gate rows, then the up rows
  T down_EDF;
  T dense_gate_up_FD;  // [2 * dense_F, D], absent without a dense FFN
  T dense_down_DF;
  T post_moe_norm_D;
};

template <class T>
struct ModelParameters {
  T embedding_VD;
  std::vector<LayerParameters<T>> layers;  // of this rank
  T final_norm_D;
  T head_VD;  // the embedding itself where the two are tied and on one rank
};

// A run of elements of a layer.
struct LayerRun {
  int layer = 0;
  Range elements;
};

struct ParameterPlan {
  int num_layers = 0;  // of the model
  std::vector<Segment> segments;
  std::vector<LogicalParameter> logical;  // in the order of files
  ModelParameters<Placement> placements;
  std::int64_t num_elements = 0;           // with the padding between tensors
  std::int64_t num_gradient_elements = 0;  // of the array that gradients are formed in
  std::int64_t num_sum_elements = 0;       // ZeRO-2: of the sums that this rank keeps; else 0
  int num_weight_places = 0;               // ZeRO-3: where layers take turns; else 0
  std::size_t weight_place_bytes = 0;      // of each
  std::int64_t num_parameters = 0;         // of the model, without padding
  // Runs of elements that this rank adds to the norm of the gradient: over all ranks, each element
  // of the model once. Each begins as aligned as a tensor. They ascend, as segments do.
  std::vector<Range> counted;
  // What of this index space, ascending, its holders leave to ranks elsewhere along `tensor`, which
  // hold it too: `counted` is the piece of each segment without it.
  std::vector<Range> elsewhere;
  // Where tensor ranks share a key/value head: its gradients, which they sum among themselves.
  std::vector<LayerRun> shared_kv;

  // Whether the whole of a segment's weights comes after the optimizer's step: what is always whole,
  // and of layers that take turns those that a pass begins with. Others come when they are acquired.
  bool comes_after_step(const Segment& segment) const {
    return segment.sharded() && (!segment.place || segment.layer < num_weight_places);
  }

  // Those of `counted` that have elements of a parameter: to look at all of them for each parameter
  // takes the square of a deep model's layers.
  std::span<const Range> counted_in(const LogicalParameter& parameter) const;

  // Whether the head's product is with the embedding's tensor, whose gradient both are summed in.
  bool head_is_embedding() const {
    return placements.head_VD.present() && placements.embedding_VD.present() &&
           placements.head_VD.begin == placements.embedding_VD.begin;
  }

  // The segment that an element lies in.
  std::size_t segment_of(std::int64_t element) const;
};

// Elements of the whole model, without padding, as plan_parameters lists its tensors.
struct ParameterCounts {
  // Of a layer.
  std::int64_t matrices = 0;  // that every token meets
  std::int64_t experts = 0;   // of all experts, of which a token meets some
  std::int64_t vectors = 0;
  std::int64_t around_layers = 0;  // the embedding, the last norm and a head of its own

  std::int64_t total(std::int64_t num_layers) const {
    return num_layers * (matrices + experts + vectors) + around_layers;
  }
};
ParameterCounts count_parameters(const ModelConfig& model);

// Matrices are kept in `compute`; the router and the norms in its accumulation dtype, because their
// arithmetic is f32 in every precision.
ParameterPlan plan_parameters(const ModelConfig& model, DType compute, const Share& share = {});

// The run of a logical parameter's elements, as the model counts them row by row, that elements
// [begin, begin + count) of this rank's part are made of: calls visit(whole_begin, local_begin,
// count), in order, `local` counted from the part's first element.
template <class Visit>
void for_each_run(const LogicalParameter& parameter, const Range& local, const Visit& visit);

// Adds what of `range` lies outside of `holes`, which ascend.
void add_without(std::vector<Range>& runs, const Range& range, const std::vector<Range>& holes);

// Calls visit(from.x, to.x) for every tensor of a layer: what turns placements into views.
template <class From, class To, class Visit>
void for_each_layer_parameter(const LayerParameters<From>& from,
                              LayerParameters<To>& to,
                              const Visit& visit) {
  visit(from.pre_attention_norm_D, to.pre_attention_norm_D);
  visit(from.qkv_CD, to.qkv_CD);
  visit(from.attention_out_DN, to.attention_out_DN);
  visit(from.post_attention_norm_D, to.post_attention_norm_D);
  visit(from.pre_moe_norm_D, to.pre_moe_norm_D);
  visit(from.router_ED, to.router_ED);
  visit(from.gate_up_EFD, to.gate_up_EFD);
  visit(from.down_EDF, to.down_EDF);
  visit(from.dense_gate_up_FD, to.dense_gate_up_FD);
  visit(from.dense_down_DF, to.dense_down_DF);
  visit(from.post_moe_norm_D, to.post_moe_norm_D);
}

template <class Visit>
void for_each_run(const LogicalParameter& parameter, const Range& local, const Visit& visit) {
  // A part is a matrix of runs: `outer` of them, one for each index of the dims before the cut.
  std::int64_t inner = 1;
  for (int i = parameter.cut_dim + 1; i < parameter.whole.num_dims; ++i) {
    inner *= parameter.whole.dims[static_cast<std::size_t>(i)];
  }
  const std::int64_t run = parameter.cut.count * inner;
  const std::int64_t stride =
      parameter.whole.dims[static_cast<std::size_t>(parameter.cut_dim)] * inner;
  for (std::int64_t begin = local.begin; begin < local.begin + local.count;) {
    const std::int64_t row = begin / run;
    const std::int64_t within = begin - row * run;
    const std::int64_t count = std::min(run - within, local.begin + local.count - begin);
    visit(row * stride + parameter.cut.begin * inner + within, begin, count);
    begin += count;
  }
}

}  // namespace memphis
