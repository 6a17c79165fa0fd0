// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/parameters.h"

#include <cmath>

#include "csrc/plan/dims.h"

namespace memphis {
namespace {

// Tensors start at multiples of this many elements: 256 bytes in bf16, more in wider types.
constexpr std::int64_t kAlignmentElements = 128;

enum SegmentIndex : int { kMatrices = 0, kRouters = 1, kNorms = 2, kNumSegments = 3 };

// A logical parameter before it is placed.
struct Piece {
  std::string name;
  TensorSpec spec;  // its dtype follows from the segment
  double init_std;
};

// Hands out places within each segment, front to back. Segments follow one another once all sizes
// are known, so places are relative to their segment until finish().
class Placer {
 public:
  Placer(ParameterPlan& plan, DType compute) : plan_(plan) {
    plan_.segments.resize(kNumSegments);
    plan_.segments[kMatrices] = {.dtype = compute, .decay = true};
    plan_.segments[kRouters] = {.dtype = accumulation_dtype(compute), .decay = true};
    plan_.segments[kNorms] = {.dtype = accumulation_dtype(compute), .decay = false};
  }

  // A tensor of `dims` that consists of `pieces`, in order, without gaps.
  Placement place(SegmentIndex index,
                  std::initializer_list<std::int64_t> dims,
                  const std::vector<Piece>& pieces) {
    Segment& segment = plan_.segments[index];
    const TensorSpec spec(dims, segment.dtype);
    const Placement placement{.spec = spec, .begin = segment.num_elements, .segment = index};
    std::int64_t begin = placement.begin;
    for (const Piece& piece : pieces) {
      TensorSpec piece_spec = piece.spec;
      piece_spec.dtype = segment.dtype;
      plan_.logical.push_back({.name = piece.name,
                               .spec = piece_spec,
                               .begin = begin,
                               .segment = index,
                               .init_std = piece.init_std});
      begin += piece_spec.num_elements();
    }
    require(begin - placement.begin == spec.num_elements(), "the pieces of a tensor fill it");
    plan_.num_parameters += spec.num_elements();
    segment.num_elements =
        (begin + kAlignmentElements - 1) / kAlignmentElements * kAlignmentElements;
    return placement;
  }

  void finish() {
    std::int64_t begin = 0;
    for (Segment& segment : plan_.segments) {
      segment.begin = begin;
      begin += segment.num_elements;
    }
    plan_.num_elements = begin;
    const auto shift = [&](const Placement& from, Placement& to) {
      to = from;
      if (from.present()) {
        to.begin += plan_.segments[static_cast<std::size_t>(from.segment)].begin;
      }
    };
    for (LogicalParameter& parameter : plan_.logical) {
      parameter.begin += plan_.segments[static_cast<std::size_t>(parameter.segment)].begin;
    }
    ModelParameters<Placement>& all = plan_.placements;
    shift(all.embedding_VD, all.embedding_VD);
    shift(all.final_norm_D, all.final_norm_D);
    shift(all.head_VD, all.head_VD);
    for (LayerParameters<Placement>& layer : all.layers) {
      for_each_layer_parameter(layer, layer, shift);
    }
  }

 private:
  ParameterPlan& plan_;
};

}  // namespace

ParameterPlan plan_parameters(const ModelConfig& model, DType compute) {
  const Dims d = make_dims(model, 1, 1);
  const auto init_std = [&](std::int64_t fan_in) {
    return model.init == InitScheme::normal ? model.init_std
                                            : 1.0 / std::sqrt(static_cast<double>(fan_in));
  };
  const std::int64_t NH = d.N * d.H;
  const std::int64_t GH = d.G * d.H;

  ParameterPlan plan;
  Placer placer(plan, compute);
  const auto matrix = [&](std::int64_t out, std::int64_t in) {
    return TensorSpec({out, in}, compute);
  };
  const auto norm = [&](const std::string& name) {
    return placer.place(kNorms, {d.D}, {{name, TensorSpec({d.D}, compute), 0.0}});
  };

  ModelParameters<Placement>& all = plan.placements;
  all.embedding_VD = placer.place(
      kMatrices, {d.V, d.D}, {{"model.embed_tokens.weight", matrix(d.V, d.D), init_std(d.D)}});
  for (std::int64_t layer = 0; layer < d.L; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const std::string attention = prefix + "self_attn.";
    const std::string moe = prefix + "block_sparse_moe.";
    LayerParameters<Placement> p;
    p.pre_attention_norm_D = norm(prefix + "pre_attn_norm.weight");
    p.qkv_CD = placer.place(kMatrices,
                            {d.C * d.H, d.D},
                            {{attention + "q_proj.weight", matrix(NH, d.D), init_std(d.D)},
                             {attention + "k_proj.weight", matrix(GH, d.D), init_std(d.D)},
                             {attention + "v_proj.weight", matrix(GH, d.D), init_std(d.D)}});
    p.attention_out_DN = placer.place(
        kMatrices, {d.D, NH}, {{attention + "o_proj.weight", matrix(d.D, NH), init_std(NH)}});
    p.post_attention_norm_D = norm(prefix + "post_attn_norm.weight");
    p.pre_moe_norm_D = norm(prefix + "pre_moe_norm.weight");
    p.router_ED = placer.place(
        kRouters, {d.E, d.D}, {{moe + "gate.weight", matrix(d.E, d.D), model.router_init_std}});
    std::vector<Piece> gate_up;
    std::vector<Piece> down;
    for (std::int64_t e = 0; e < d.E; ++e) {
      const std::string expert = moe + "experts." + std::to_string(e) + ".";
      gate_up.push_back({expert + "w1.weight", matrix(d.F, d.D), init_std(d.D)});
      gate_up.push_back({expert + "w3.weight", matrix(d.F, d.D), init_std(d.D)});
      down.push_back({expert + "w2.weight", matrix(d.D, d.F), init_std(d.F)});
    }
    p.gate_up_EFD = placer.place(kMatrices, {d.E, 2 * d.F, d.D}, gate_up);
    p.down_EDF = placer.place(kMatrices, {d.E, d.D, d.F}, down);
    if (d.dense_F > 0) {
      const std::string mlp = prefix + "mlp.";
      p.dense_gate_up_FD =
          placer.place(kMatrices,
                       {2 * d.dense_F, d.D},
                       {{mlp + "gate_proj.weight", matrix(d.dense_F, d.D), init_std(d.D)},
                        {mlp + "up_proj.weight", matrix(d.dense_F, d.D), init_std(d.D)}});
      p.dense_down_DF =
          placer.place(kMatrices,
                       {d.D, d.dense_F},
                       {{mlp + "down_proj.weight", matrix(d.D, d.dense_F), init_std(d.dense_F)}});
    }
    p.post_moe_norm_D = norm(prefix + "post_moe_norm.weight");
    all.layers.push_back(p);
  }
  all.final_norm_D = norm("model.norm.weight");
  all.head_VD =
      model.tie_embeddings
          ? all.embedding_VD
          : placer.place(
                kMatrices, {d.V, d.D}, {{"lm_head.weight", matrix(d.V, d.D), init_std(d.D)}});
  placer.finish();
  return plan;
}

}  // namespace memphis
