// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/parameters.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

#include "csrc/core/arena.h"
#include "csrc/core/round.h"
#include "csrc/plan/dims.h"

namespace memphis {
namespace {

// Tensors start at multiples of this many elements: 256 bytes in bf16, more in wider types.
constexpr std::int64_t kAlignmentElements = 128;

// Parameters that have a dtype, a decay rule and a group of replicas in common.
enum Kind : std::size_t { kMatrices, kExperts, kRouters, kNorms, kNumKinds };

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

// Hands out places, in the order of the forward pass, within the open segment of each kind.
// Segments follow one another once all sizes are known, so places are relative to their segment
// until finish().
class Placer {
 public:
  Placer(ParameterPlan& plan, DType compute, const Share& share)
      : plan_(plan),
        share_(share),
        // The same places in every precision.
        bucket_elements_(share.bucket_bytes / static_cast<std::int64_t>(size_of(DType::f32))) {
    // Where the residual stream is whole on every tensor rank, so is the gradient of a norm.
    const Axis norm_replicas = share.sequence_parallel ? Axis::stage_ranks : Axis::data_context;
    const DType wide = accumulation_dtype(compute);
    kinds_[kMatrices] = {.dtype = compute, .decay = true, .replicas = Axis::data_context};
    kinds_[kExperts] = {.dtype = compute, .decay = true, .replicas = Axis::expert_data};
    kinds_[kRouters] = {.dtype = wide, .decay = true, .replicas = Axis::stage_ranks};
    kinds_[kNorms] = {.dtype = wide, .decay = false, .replicas = norm_replicas};
  }

  // What is placed from here on is of this layer.
  void begin_layer(int layer) { layer_ = layer; }

  // A tensor of `dims` that consists of `parts`, in order, without gaps; of a copy (Tied), whose
  // parts are another rank's, none.
  Placement place(Kind kind,
                  std::initializer_list<std::int64_t> dims,
                  const std::vector<Part>& parts,
                  Tied tied = Tied::no) {
    const std::size_t index = open_segment(kind);
    Segment& segment = plan_.segments[index];
    const TensorSpec spec(dims, segment.dtype);
    const Placement placement{
        .spec = spec, .begin = segment.num_elements, .segment = static_cast<int>(index)};
    segment.tied = tied;
    if (tied == Tied::copy) {
      segment.num_elements = round_up(spec.num_elements(), kAlignmentElements);
      return placement;
    }
    std::int64_t begin = placement.begin;
    for (const Part& part : parts) {
      LogicalParameter parameter{.name = part.name,
                                 .whole = part.whole,
                                 .cut_dim = part.cut_dim,
                                 .cut = part.cut,
                                 .spec = part.spec(),
                                 .begin = begin,
                                 .segment = placement.segment,
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

  void finish(int num_layers) {
    order_segments();
    std::int64_t begin = 0;
    for (Segment& segment : plan_.segments) {
      const Piece& replicas = segment.replicas == Axis::stage_ranks   ? share_.stage_ranks
                              : segment.replicas == Axis::expert_data ? share_.expert_data
                                                                      : share_.data_context;
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
    place_gradients(num_layers);
    place_weights(num_layers);
    for (LogicalParameter& parameter : plan_.logical) {
      parameter.begin += plan_.segments[static_cast<std::size_t>(parameter.segment)].begin;
    }
    for_each_placement([&](const Placement& from, Placement& to) {
      to = from;
      if (from.present()) {
        to.begin += plan_.segments[static_cast<std::size_t>(from.segment)].begin;
      }
    });
  }

 private:
  // Of one layer: its gradients may lie where another's have been (ZeRO-2), its weights too
  // (ZeRO-3), and equal gradients have a norm of equal bits whatever is shared out, and in any
  // pipeline.
  std::size_t open_segment(Kind kind) {
    std::optional<std::size_t>& open = open_[kind];
    const bool fits = open && plan_.segments[*open].num_elements < bucket_elements_ &&
                      plan_.segments[*open].layer == layer_;
    if (!fits) {
      open = plan_.segments.size();
      plan_.segments.push_back(kinds_[kind]);
      plan_.segments.back().layer = layer_;
      kind_of_.push_back(kind);
    }
    return *open;
  }

  // By layers, and kind by kind: ranks that lie in several groups together start what these groups
  // move in one order, though a segment of another kind may end elsewhere on each.
  void order_segments() {
    std::vector<std::size_t> order(plan_.segments.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return std::tuple(plan_.segments[a].layer, kind_of_[a], a) <
             std::tuple(plan_.segments[b].layer, kind_of_[b], b);
    });
    std::vector<Segment> ordered;
    std::vector<int> place(order.size());
    for (const std::size_t from : order) {
      place[from] = static_cast<int>(ordered.size());
      ordered.push_back(plan_.segments[from]);
    }
    plan_.segments = std::move(ordered);
    const auto renumber = [&](int& segment) { segment = place[static_cast<std::size_t>(segment)]; };
    for (LogicalParameter& parameter : plan_.logical) {
      renumber(parameter.segment);
    }
    for_each_placement([&](const Placement& from, Placement& to) {
      to = from;
      if (from.present()) {
        renumber(to.segment);
      }
    });
  }

  template <class Visit>
  void for_each_placement(const Visit& visit) {
    ModelParameters<Placement>& all = plan_.placements;
    visit(all.embedding_VD, all.embedding_VD);
    visit(all.final_norm_D, all.final_norm_D);
    visit(all.head_VD, all.head_VD);
    for (LayerParameters<Placement>& layer : all.layers) {
      for_each_layer_parameter(layer, layer, visit);
    }
  }

  void place_gradients(int num_layers) {
    if (!share_.shard_gradients) {
      for (Segment& segment : plan_.segments) {
        segment.gradient_begin = segment.begin;
      }
      plan_.num_gradient_elements = plan_.num_elements;
      return;
    }
    // What comes before and after the layers may be one tensor, whose gradient takes the whole
    // backward pass; of the layers one is formed while the one before it is reduced.
    std::int64_t around_layers = 0;
    std::vector<std::int64_t> layer_elements(static_cast<std::size_t>(num_layers));
    for (Segment& segment : plan_.segments) {
      const bool is_layer = segment.layer >= 0 && segment.layer < num_layers;
      std::int64_t& end =
          is_layer ? layer_elements[static_cast<std::size_t>(segment.layer)] : around_layers;
      segment.gradient_begin = end;
      end += segment.num_elements;
      segment.sum_begin = plan_.num_sum_elements;
      plan_.num_sum_elements += segment.owned.count;
    }
    const std::int64_t largest =
        layer_elements.empty() ? 0
                               : *std::max_element(layer_elements.begin(), layer_elements.end());
    for (Segment& segment : plan_.segments) {
      if (segment.layer >= 0 && segment.layer < num_layers) {
        segment.gradient_begin += around_layers + segment.layer % kTurns * largest;
      }
    }
    plan_.num_gradient_elements = around_layers + std::min(num_layers, kTurns) * largest;
  }

  // Of the layers one is at work while the next one's weights arrive. What comes before and after
  // them may be one tensor, which a pass begins and ends with: it stays.
  void place_weights(int num_layers) {
    if (!share_.shard_weights) {
      return;
    }
    std::vector<std::size_t> layer_bytes(static_cast<std::size_t>(num_layers));
    for (Segment& segment : plan_.segments) {
      const int layer = segment.layer;
      if (layer < 0 || layer >= num_layers || !segment.sharded()) {
        continue;
      }
      std::size_t& end = layer_bytes[static_cast<std::size_t>(layer)];
      segment.place = static_cast<std::size_t>(layer % kTurns);
      segment.place_offset = end;
      end += arena_bytes(TensorSpec({segment.num_elements}, segment.dtype));
      plan_.num_weight_places = std::min(num_layers, kTurns);
      plan_.weight_place_bytes = std::max(plan_.weight_place_bytes, end);
    }
  }

  // Places in which layers take turns: one is used and the other made ready.
  static constexpr int kTurns = 2;

  ParameterPlan& plan_;
  const Share& share_;
  std::int64_t bucket_elements_;
  int layer_ = kBeforeLayers;
  std::array<Segment, kNumKinds> kinds_;
  std::array<std::optional<std::size_t>, kNumKinds> open_;
  std::vector<Kind> kind_of_;  // by segment
};

Range whole_range(std::int64_t count) {
  return {.begin = 0, .count = count};
}

}  // namespace

void add_without(std::vector<Range>& runs, const Range& range, const std::vector<Range>& holes) {
  std::int64_t begin = range.begin;
  const auto add_to = [&](std::int64_t to) {
    if (to > begin) {
      runs.push_back({.begin = begin, .count = to - begin});
    }
  };
  for (const Range& hole : holes) {
    if (intersection(range, hole).count > 0) {
      add_to(hole.begin);
      begin = hole.end();
    }
  }
  add_to(range.end());
}

std::span<const Range> ParameterPlan::counted_in(const LogicalParameter& parameter) const {
  const std::int64_t end = parameter.begin + parameter.spec.num_elements();
  const auto first = std::partition_point(counted.begin(), counted.end(), [&](const Range& run) {
    return run.end() <= parameter.begin;
  });
  const auto last =
      std::partition_point(first, counted.end(), [&](const Range& run) { return run.begin < end; });
  return {first, last};
}

std::size_t ParameterPlan::segment_of(std::int64_t element) const {
  const auto after = std::upper_bound(
      segments.begin(), segments.end(), element, [](std::int64_t value, const Segment& segment) {
        return value < segment.begin;
      });
  require(after != segments.begin() && element < num_elements, "an element lies in a segment");
  return static_cast<std::size_t>(after - segments.begin()) - 1;
}

namespace {

// All of a plan but what is counted.
ParameterPlan place_parameters(const ModelConfig& model, DType compute, const Share& share) {
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

  const std::vector<StageLayers> stages = stages_of(model, share);
  const auto has = [&](bool StageLayers::*what) {
    return std::any_of(
        stages.begin(), stages.end(), [&](const StageLayers& stage) { return stage.*what; });
  };
  const bool has_embedding = has(&StageLayers::embedding);
  const bool has_head = has(&StageLayers::head);
  const bool apart = model.tie_embeddings && has_embedding != has_head;

  plan.num_layers = static_cast<int>(d.L);
  ModelParameters<Placement>& all = plan.placements;
  if (has_embedding) {
    all.embedding_VD = placer.place(kMatrices,
                                    {d.local_V.count, d.D},
                                    {rows("model.embed_tokens.weight", d.V, d.D, d.local_V)},
                                    apart ? Tied::original : Tied::no);
  }
  const auto place_layer = [&](std::int64_t layer) {
    placer.begin_layer(static_cast<int>(layer));
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const std::string attention = prefix + "self_attn.";
    const std::string moe = prefix + "block_sparse_moe.";
    LayerParameters<Placement> p;
    p.pre_attention_norm_D = norm(prefix + "pre_attn_norm.weight");
    p.qkv_CD = placer.place(kMatrices,
                            {d.local_C * d.H, d.D},
                            {rows(attention + "q_proj.weight", whole_NH, d.D, rows_of(q_heads)),
                             rows(attention + "k_proj.weight", whole_GH, d.D, rows_of(kv.heads)),
                             rows(attention + "v_proj.weight", whole_GH, d.D, rows_of(kv.heads))});
    p.attention_out_DN =
        placer.place(kMatrices,
                     {d.D, d.local_N * d.H},
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
    for (std::int64_t e = experts.begin; e < experts.end(); ++e) {
      const std::string expert = moe + "experts." + std::to_string(e) + ".";
      gate_up.push_back(rows(expert + "w1.weight", model.ffn_dim, d.D, ffn));
      gate_up.push_back(rows(expert + "w3.weight", model.ffn_dim, d.D, ffn));
      down.push_back(columns(expert + "w2.weight", d.D, model.ffn_dim, ffn));
    }
    p.gate_up_EFD = placer.place(kExperts, {d.local_E, 2 * d.local_F, d.D}, gate_up);
    p.down_EDF = placer.place(kExperts, {d.local_E, d.D, d.local_F}, down);
    if (d.local_dense_F > 0) {
      const std::string mlp = prefix + "mlp.";
      p.dense_gate_up_FD =
          placer.place(kMatrices,
                       {2 * d.local_dense_F, d.D},
                       {rows(mlp + "gate_proj.weight", model.dense_ffn_dim, d.D, dense_ffn),
                        rows(mlp + "up_proj.weight", model.dense_ffn_dim, d.D, dense_ffn)});
      p.dense_down_DF =
          placer.place(kMatrices,
                       {d.D, d.local_dense_F},
                       {columns(mlp + "down_proj.weight", d.D, model.dense_ffn_dim, dense_ffn)});
    }
    p.post_moe_norm_D = norm(prefix + "post_moe_norm.weight");
    all.layers.push_back(p);
  };
  for (const StageLayers& stage : stages) {
    for (std::int64_t layer = stage.layers.begin; layer < stage.layers.end(); ++layer) {
      place_layer(layer);
    }
  }
  if (has_head) {
    placer.begin_layer(plan.num_layers);
    all.final_norm_D = norm("model.norm.weight");
    all.head_VD = model.tie_embeddings && has_embedding
                      ? all.embedding_VD
                      : placer.place(kMatrices,
                                     {d.local_V.count, d.D},
                                     {rows("lm_head.weight", d.V, d.D, d.local_V)},
                                     apart ? Tied::copy : Tied::no);
  }
  placer.finish(plan.num_layers);
  return plan;
}

}  // namespace

ParameterCounts count_parameters(const ModelConfig& model) {
  ModelConfig of_one_layer = model;
  of_one_layer.num_layers = 1;
  const ParameterPlan plan = place_parameters(of_one_layer, DType::f32, {});
  ParameterCounts counts;
  for (const LogicalParameter& parameter : plan.logical) {
    const Segment& segment = plan.segments[static_cast<std::size_t>(parameter.segment)];
    std::int64_t& count = segment.layer != 0                      ? counts.around_layers
                          : segment.replicas == Axis::expert_data ? counts.experts
                          : parameter.whole.num_dims > 1          ? counts.matrices
                                                                  : counts.vectors;
    count += parameter.whole.num_elements();
  }
  return counts;
}

ParameterPlan plan_parameters(const ModelConfig& model, DType compute, const Share& share) {
  ParameterPlan plan = place_parameters(model, compute, share);
  plan.num_parameters = count_parameters(model).total(model.num_layers);
  const Dims d = make_dims(model, 1, 1, share);
  const KvShare kv = kv_share(model, share);
  const std::vector<LayerParameters<Placement>>& layers = plan.placements.layers;
  if (kv.sharers.count > 1) {
    for (const LayerParameters<Placement>& layer : layers) {
      const std::int64_t q_elements = d.local_N * d.H * d.D;
      const Range shared{.begin = layer.qkv_CD.begin + q_elements,
                         .count = 2 * d.local_G * d.H * d.D};
      const auto segment = static_cast<std::size_t>(layer.qkv_CD.segment);
      plan.shared_kv.push_back({.layer = plan.segments[segment].layer, .elements = shared});
      if (kv.sharers.index > 0) {
        // With the padding behind it, so that what is counted begins aligned.
        const std::int64_t end = round_up(shared.end(), kAlignmentElements);
        plan.elsewhere.push_back({.begin = shared.begin, .count = end - shared.begin});
      }
    }
  }
  for (const Segment& segment : plan.segments) {
    // A norm whose replicas are those along `data` is the same on every tensor rank.
    const bool is_norm = !segment.decay;
    if (is_norm && segment.replicas == Axis::data_context && share.tensor.index > 0) {
      plan.elsewhere.push_back({.begin = segment.begin, .count = segment.num_elements});
    }
  }
  std::sort(plan.elsewhere.begin(), plan.elsewhere.end(), [](const Range& a, const Range& b) {
    return a.begin < b.begin;
  });
  for (const Segment& segment : plan.segments) {
    if (segment.has_state()) {
      add_without(plan.counted, segment.piece, plan.elsewhere);
    }
  }
  return plan;
}

}  // namespace memphis
