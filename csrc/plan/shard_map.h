// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/parameters.h"

namespace memphis {

// Which rank of a job writes which elements of every parameter to a checkpoint, from the config
// alone. Ranks that hold the same elements of a segment share one plan and each write an equal
// piece of it, so the map has a plan for each of these groups and not for each rank: as many as an
// expert layer lies on ranks, and no more for more replicas.
class ShardMap {
 public:
  // `parallel` folds `num_ranks`.
  ShardMap(const ModelConfig& model, const ParallelConfig& parallel, std::int64_t num_ranks);
  ShardMap(const ShardMap&) = delete;
  ShardMap& operator=(const ShardMap&) = delete;

  // Elements `local` of the part of `parameter` that `rank` holds.
  using Visit =
      std::function<void(std::int64_t rank, const LogicalParameter& parameter, const Range& local)>;
  // Every element of every parameter once.
  void for_each_shard(const Visit& visit) const;

  // Adds the ranks that write elements `local` of `part`, which is of this layout or another of the
  // same model.
  void add_writers(const LogicalParameter& part,
                   const Range& local,
                   std::set<std::int64_t>& ranks) const;

 private:
  // A part of a parameter and the ranks that hold it.
  struct Holders {
    RankGroup ranks;
    const ParameterPlan* plan;  // of the first of them
    const LogicalParameter* part;
  };

  // Calls visit(rank, local) for those of the holders' elements `local` that they write.
  template <class VisitPiece>
  static void for_each_piece(const Holders& holders, const Range& local, const VisitPiece& visit);

  std::map<std::int64_t, ParameterPlan> plans_;  // by rank
  std::map<std::string, std::vector<Holders>> holders_;
};

}  // namespace memphis
