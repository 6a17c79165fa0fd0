// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/shard_map.h"

#include <algorithm>

#include "csrc/plan/share.h"

namespace memphis {
namespace {

// Calls visit(local) for the elements of `part` among those `whole` of its whole tensor:
// what for_each_run does, the other way.
template <class Visit>
void for_each_held(const LogicalParameter& part, const Range& whole, const Visit& visit) {
  std::int64_t inner = 1;
  for (int i = part.cut_dim + 1; i < part.whole.num_dims; ++i) {
    inner *= part.whole.dims[static_cast<std::size_t>(i)];
  }
  const std::int64_t run = part.cut.count * inner;
  const std::int64_t stride = part.whole.dims[static_cast<std::size_t>(part.cut_dim)] * inner;
  for (std::int64_t row = whole.begin / stride; row * stride < whole.end(); ++row) {
    const Range held_run = {.begin = row * stride + part.cut.begin * inner, .count = run};
    const Range held = intersection(whole, held_run);
    if (held.count > 0) {
      visit(Range{.begin = row * run + held.begin - held_run.begin, .count = held.count});
    }
  }
}

}  // namespace

ShardMap::ShardMap(const ModelConfig& model,
                   const ParallelConfig& parallel,
                   std::int64_t num_ranks) {
  const Mesh mesh(parallel, num_ranks);
  // Where a parameter lies does not depend on its dtype.
  const auto plan_of = [&](std::int64_t rank) -> const ParameterPlan& {
    const auto found = plans_.find(rank);
    return found != plans_.end()
               ? found->second
               : plans_
                     .emplace(rank,
                              plan_parameters(
                                  model, DType::f32, make_share(model, parallel, mesh, rank)))
                     .first->second;
  };
  for (const Axis replicas : {Axis::data_context, Axis::expert_data, Axis::stage_ranks}) {
    for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
      if (mesh.index(replicas, rank) != 0) {
        continue;
      }
      const ParameterPlan& plan = plan_of(rank);
      for (const LogicalParameter& part : plan.logical) {
        if (plan.segments[static_cast<std::size_t>(part.segment)].replicas == replicas) {
          holders_[part.name].push_back(
              {.ranks = mesh.group(replicas, rank), .plan = &plan, .part = &part});
        }
      }
    }
  }
}

template <class VisitPiece>
void ShardMap::for_each_piece(const Holders& holders, const Range& local, const VisitPiece& visit) {
  const LogicalParameter& part = *holders.part;
  const Segment& segment = holders.plan->segments[static_cast<std::size_t>(part.segment)];
  const std::int64_t piece = segment.piece.count;  // of each rank
  std::vector<Range> runs;
  add_without(
      runs, {.begin = part.begin + local.begin, .count = local.count}, holders.plan->elsewhere);
  for (const Range& run : runs) {
    for (std::int64_t begin = run.begin; begin < run.end();) {
      const std::int64_t index = (begin - segment.begin) / piece;
      const Range held =
          intersection(run, {.begin = segment.begin + index * piece, .count = piece});
      visit(holders.ranks.first + index * holders.ranks.stride, part.local(held));
      begin = held.end();
    }
  }
}

void ShardMap::for_each_shard(const Visit& visit) const {
  for (const auto& [name, all] : holders_) {
    for (const Holders& holders : all) {
      const LogicalParameter& part = *holders.part;
      for_each_piece(holders,
                     {.begin = 0, .count = part.spec.num_elements()},
                     [&](std::int64_t rank, const Range& local) { visit(rank, part, local); });
    }
  }
}

void ShardMap::add_writers(const LogicalParameter& part,
                           const Range& local,
                           std::set<std::int64_t>& ranks) const {
  const auto found = holders_.find(part.name);
  if (found == holders_.end()) {
    return;
  }
  for_each_run(part, local, [&](std::int64_t whole, std::int64_t /*at*/, std::int64_t count) {
    for (const Holders& holders : found->second) {
      for_each_held(*holders.part, {.begin = whole, .count = count}, [&](const Range& held) {
        for_each_piece(
            holders, held, [&](std::int64_t rank, const Range& /*piece*/) { ranks.insert(rank); });
      });
    }
  });
}

}  // namespace memphis
