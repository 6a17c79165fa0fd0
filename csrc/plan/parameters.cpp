// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/parameters.h"

#include <cmath>
#include <utility>

#include "csrc/plan/dims.h"

namespace memphis {
namespace {

// Tensors start at multiples of this many elements: 256 bytes in bf16, more in wider types.
constexpr std::int64_t kAlignmentElements = 128;

enum SegmentIndex : int { kMatrices = 0, kExperts = 1, kRouters = 2, kNorms = 3, kNumSegments = 4 };

// A logical parameter before it is placed; its dtype follows from the segment.
struct Part {
  std::string name;
  TensorSpec whole;
  int cut_dim = 0;
  Range cut;
  double init_std = 0;

  TensorSpec spec() const {
    TensorSpec result = whole;
    result.dims[static_cast<std::size_t>(cut_dim)] = cut.count;
    return result;
  }
};

std::int64_t round_up(std::int64_t number, std::int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

// Hands out places within each segment, front to back. Segments follow one another once all sizes
// are known, so places are relative to their segment until finish().
class Placer {
 public:
  Placer(ParameterPlan& plan, DType compute, const Share& share) : plan_(plan), share_(share) {
    // Where the residual stream is whole on every tensor rank, so is the gradient of a norm.
    const Axis norm_replicas = share.sequence_parallel ? Axis::stage : Axis::data_context;
    const DType wide = accumulation_dtype(compute);
    plan_.segments = {{.dtype = compute, .decay = true, .replicas = Axis::data_context},
                      {.dtype = compute, .decay = true, .replicas = Axis::expert_data},
                      {.dtype = wide, .decay = true, .replicas = Axis::stage},
                      {.dtype = wide, .decay = false, .replicas = norm_replicas}};
  }

  // A tensor of `dims` that consists of `parts`, in order, without gaps.
  Placement place(SegmentIndex index,
                  std::initializer_list<std::int64_t> dims,
                  const std::vector<Part>& parts) {
    Segment& segment = plan_.segments[index];
    const TensorSpec spec(dims, segment.dtype);
    const Placement placement{.spec = spec, .begin = segment.num_elements, .segment = index};
    std::int64_t begin = placement.begin;
    for (const Part& part : parts) {
      LogicalParameter parameter{.name = part.name,
                                 .whole = part.whole,
                                 .cut_dim = part.cut_dim,
                                 .cut = part.cut,
                                 .spec = part.spec(),
                                 .begin = begin,
                                 .segment = index,
                                 .init_std = part.init_std};
      parameter.whole.dtype = segment.dtype;
      parameter.spec.dtype = segment.dtype;
      begin += parameter.spec.num_elements();
      plan_.logical.push_back(std::move(parameter));
    }
    require(begin - placement.begin == spec.num_elements(), "the parts of a tensor fill it");
    segment.num_elements = round_up(begin, kAlignmentElements);
    return placement;
  }

  void finish() {
    std::int64_t begin = 0;
    for (Segment& segment : plan_.segments) {
      const Piece& replicas = segment.replicas == Axis::stage         ? share_.stage
                              : segment.replicas == Axis::expert_data ? share_.expert_data
                                                                      : share_.data;
      // Equal, aligned pieces.
      segment.num_elements = round_up(segment.num_elements, kAlignmentElements * replicas.count);
      segment.begin = begin;
      segment.piece = replicas.of(segment.num_elements);
      segment.piece.begin += begin;
      segment.owned = share_.shard_optimizer ? segment.piece
                                             : Range{.begin = begin, .count = segment.num_elements};
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
  const Share& share_;
};

Range whole_range(std::int64_t count) {
  return {.begin = 0, .count = count};
}

// Counts each parameter of the model once, which no rank need hold.
std::int64_t count_parameters(const ModelConfig& model) {
  const Dims d = make_dims(model, 1, 1);
  const std::int64_t attention = 2 * d.D * d.N * d.H + 2 * d.D * d.G * d.H;
  const std::int64_t experts = d.E * (3 * d.D * d.F + d.D);
  const std::int64_t layer = attention + experts + 3 * d.D * d.dense_F + 4 * d.D;
  return d.L * layer + d.D + (model.tie_embeddings ? 1 : 2) * d.V * d.D;
}

}  // namespace

void add_without(std::vector<Range>& runs, const Range& range, const std::vector<Range>& holes) {
  const std::int64_t end = range.begin + range.count;
  std::int64_t begin = range.begin;
  const auto add_to = [&](std::int64_t to) {
    if (to > begin) {
      runs.push_back({.begin = begin, .count = to - begin});
    }
  };
  for (const Range& hole : holes) {
    if (hole.begin < end && hole.begin + hole.count > begin) {
      add_to(hole.begin);
      begin = hole.begin + hole.count;
    }
  }
  add_to(end);
}

ParameterPlan plan_parameters(const ModelConfig& model, DType compute, const Share& share) {
  const Dims d = make_dims(model, 1, 1, share);
  const auto init_std = [&](std::int64_t fan_in) {
    return model.init == InitScheme::normal ? model.init_std
                                            : 1.0 / std::sqrt(static_cast<double>(fan_in));
  };
  const KvShare kv = kv_share(model, share);
  const Range q_heads = share.tensor.of(model.num_heads);
  const auto rows_of = [&](const Range& heads) {
    return Range{.begin = heads.begin * d.H, .count = heads.count * d.H};
  };
  const std::int64_t whole_NH = model.num_heads * d.H;
  const std::int64_t whole_GH = model.num_kv_heads * d.H;
  const Range ffn = share.expert_tensor.of(model.ffn_dim);
  const Range dense_ffn = share.tensor.of(model.dense_ffn_dim);

  ParameterPlan plan;
  Placer placer(plan, compute, share);
  // Rows `cut` of a matrix [out, in], or columns.
  const auto rows = [&](std::string name, std::int64_t out, std::int64_t in, const Range& cut) {
    return Part{.name = std::move(name),
                .whole = {{out, in}, compute},
                .cut_dim = 0,
                .cut = cut,
                .init_std = init_std(in)};
  };
  const auto columns = [&](std::string name, std::int64_t out, std::int64_t in, const Range& cut) {
    return Part{.name = std::move(name),
                .whole = {{out, in}, compute},
                .cut_dim = 1,
                .cut = cut,
                .init_std = init_std(in)};
  };
  const auto norm = [&](const std::string& name) {
    return placer.place(
        kNorms,
        {d.D},
        {{.name = name, .whole = {{d.D}, compute}, .cut = whole_range(d.D), .init_std = 0.0}});
  };

  ModelParameters<Placement>& all = plan.placements;
  all.embedding_VD = placer.place(
      kMatrices, {d.local_V.count, d.D}, {rows("model.embed_tokens.weight", d.V, d.D, d.local_V)});
  for (std::int64_t layer = 0; layer < d.L; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const std::string attention = prefix + "self_attn.";
    const std::string moe = prefix + "block_sparse_moe.";
    LayerParameters<Placement> p;
    p.pre_attention_norm_D = norm(prefix + "pre_attn_norm.weight");
    p.qkv_CD = placer.place(kMatrices,
                            {d.C * d.H, d.D},
                            {rows(attention + "q_proj.weight", whole_NH, d.D, rows_of(q_heads)),
                             rows(attention + "k_proj.weight", whole_GH, d.D, rows_of(kv.heads)),
                             rows(attention + "v_proj.weight", whole_GH, d.D, rows_of(kv.heads))});
    p.attention_out_DN =
        placer.place(kMatrices,
                     {d.D, d.N * d.H},
                     {columns(attention + "o_proj.weight", d.D, whole_NH, rows_of(q_heads))});
    p.post_attention_norm_D = norm(prefix + "post_attn_norm.weight");
    p.pre_moe_norm_D = norm(prefix + "pre_moe_norm.weight");
    p.router_ED = placer.place(kRouters,
                               {d.E, d.D},
                               {{.name = moe + "gate.weight",
                                 .whole = {{d.E, d.D}, compute},
                                 .cut = whole_range(d.E),
                                 .init_std = model.router_init_std}});
    std::vector<Part> gate_up;
    std::vector<Part> down;
    const Range experts = share.expert.of(model.num_experts);
    for (std::int64_t e = experts.begin; e < experts.begin + experts.count; ++e) {
      const std::string expert = moe + "experts." + std::to_string(e) + ".";
      gate_up.push_back(rows(expert + "w1.weight", model.ffn_dim, d.D, ffn));
      gate_up.push_back(rows(expert + "w3.weight", model.ffn_dim, d.D, ffn));
      down.push_back(columns(expert + "w2.weight", d.D, model.ffn_dim, ffn));
    }
    p.gate_up_EFD = placer.place(kExperts, {d.local_E, 2 * d.F, d.D}, gate_up);
    p.down_EDF = placer.place(kExperts, {d.local_E, d.D, d.F}, down);
    if (d.dense_F > 0) {
      const std::string mlp = prefix + "mlp.";
      p.dense_gate_up_FD =
          placer.place(kMatrices,
                       {2 * d.dense_F, d.D},
                       {rows(mlp + "gate_proj.weight", model.dense_ffn_dim, d.D, dense_ffn),
                        rows(mlp + "up_proj.weight", model.dense_ffn_dim, d.D, dense_ffn)});
      p.dense_down_DF =
          placer.place(kMatrices,
                       {d.D, d.dense_F},
                       {columns(mlp + "down_proj.weight", d.D, model.dense_ffn_dim, dense_ffn)});
    }
    p.post_moe_norm_D = norm(prefix + "post_moe_norm.weight");
    all.layers.push_back(p);
  }
  all.final_norm_D = norm("model.norm.weight");
  all.head_VD = model.tie_embeddings ? all.embedding_VD
                                     : placer.place(kMatrices,
                                                    {d.local_V.count, d.D},
                                                    {rows("lm_head.weight", d.V, d.D, d.local_V)});
  placer.finish();
  plan.num_parameters = count_parameters(model);

  if (kv.sharers.count > 1) {
    for (const LayerParameters<Placement>& layer : all.layers) {
      const std::int64_t q_elements = d.N * d.H * d.D;
      const Range shared{.begin = layer.qkv_CD.begin + q_elements, .count = 2 * d.G * d.H * d.D};
      plan.shared_kv.push_back(shared);
      if (kv.sharers.index > 0) {
        plan.elsewhere.push_back(shared);
      }
    }
  }
  const Segment& norms = plan.segments[kNorms];
  if (norms.replicas == Axis::data_context && share.tensor.index > 0) {
    plan.elsewhere.push_back({.begin = norms.begin, .count = norms.num_elements});
  }
  for (const Segment& segment : plan.segments) {
    add_without(plan.counted, segment.piece, plan.elsewhere);
  }
  return plan;
}

}  // namespace memphis
