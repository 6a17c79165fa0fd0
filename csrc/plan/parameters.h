// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/tensor.h"

namespace memphis {

// Where every parameter lies, from the config alone.
//
// All parameters share one index space of elements, [0, num_elements). Weights, master weights,
// moments and gradients are flat arrays over it, so an optimizer step, a gradient norm or a bucket
// is a run of that space and not a list of tensors. It is cut into segments of one dtype and one
// decay rule.
//
// A tensor that the model multiplies by (`Placement`) may hold several logical parameters, the
// tensors of the Hugging Face form B (`LogicalParameter`), one behind the other: q, k and v are one
// product, gate and up of an expert are one product.

struct Segment {
  DType dtype = DType::f32;  // of the weights
  bool decay = false;        // weight decay applies
  std::int64_t begin = 0;    // element index
  std::int64_t num_elements = 0;
};

struct Placement {
  TensorSpec spec;
  std::int64_t begin = 0;  // element index
  int segment = 0;
  bool present() const { return spec.present(); }
};

struct LogicalParameter {
  std::string name;  // "model.layers.0.self_attn.q_proj.weight"
  TensorSpec spec;
  std::int64_t begin = 0;  // element index
  int segment = 0;
  double init_std = 0;  // N(0, init_std^2); 0: ones (a norm's gain)
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
  std::vector<LayerParameters<T>> layers;
  T final_norm_D;
  T head_VD;  // the embedding itself where the two are tied
};

struct ParameterPlan {
  std::vector<Segment> segments;
  std::vector<LogicalParameter> logical;  // in the order of files
  ModelParameters<Placement> placements;
  std::int64_t num_elements = 0;    // with the padding between tensors
  std::int64_t num_parameters = 0;  // without
};

// Matrices are kept in `compute`; the router and the norms in its accumulation dtype, because their
// arithmetic is f32 in every precision.
ParameterPlan plan_parameters(const ModelConfig& model, DType compute);

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

}  // namespace memphis
