// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/config/config.h"

namespace memphis {

// The ranks of a job, folded twice, outermost axis first:
//
//   everything dense   pipeline x data x context x tensor
//   experts            pipeline x expert_data x expert x expert_tensor
//
// Both folds cut the ranks of a pipeline stage, so expert_data follows from the other degrees. The
// innermost axis talks most and has neighbouring ranks.
enum class Axis : std::uint8_t {
  pipeline,
  data,
  context,
  tensor,
  expert_data,
  expert,
  expert_tensor,
  // Products of neighbouring axes.
  data_context,    // replicas of a dense parameter that tensor ranks share out
  sequence_ranks,  // context x tensor: who shares out one sequence
  stage_ranks,  // data x context x tensor: who works on one place of a pipeline; replicas of a norm
  expert_ranks,  // expert x expert_tensor: where a token's rows go
  world,
};

std::string_view name_of(Axis axis);

// Those that have a degree of their own.
inline constexpr std::array kAxes = {Axis::pipeline,
                                     Axis::data,
                                     Axis::context,
                                     Axis::tensor,
                                     Axis::expert_data,
                                     Axis::expert,
                                     Axis::expert_tensor};

// first, first + stride, ..., `count` of them.
struct RankGroup {
  std::int64_t first = 0;
  std::int64_t stride = 1;
  std::int64_t count = 1;

  std::vector<int> ranks() const;
};

// A rank's place along each axis.
struct Coordinates {
  std::int64_t pipeline = 0;
  std::int64_t data = 0;
  std::int64_t context = 0;
  std::int64_t tensor = 0;
  std::int64_t expert_data = 0;
  std::int64_t expert = 0;
  std::int64_t expert_tensor = 0;
};

// Pure arithmetic, a few integers: 100,000 ranks cost what one does.
class Mesh {
 public:
  // One rank.
  Mesh() { parallel_.data = 1; }
  // ContractError unless `parallel` folds `num_ranks` (config validation has said so to the user).
  Mesh(const ParallelConfig& parallel, std::int64_t num_ranks);

  const ParallelConfig& parallel() const { return parallel_; }
  std::int64_t num_ranks() const { return num_ranks_; }
  std::int64_t degree(Axis axis) const;
  Coordinates coordinates(std::int64_t rank) const;
  // The ranks that differ from `rank` along `axis` alone, ascending.
  RankGroup group(Axis axis, std::int64_t rank) const;
  // The rank that is at `index` along `axis`, and where `rank` is along all others.
  std::int64_t at(Axis axis, std::int64_t index, std::int64_t rank) const;
  // The place of `rank` in group(axis, rank).
  std::int64_t index(Axis axis, std::int64_t rank) const;

 private:
  struct Place;
  Place place(Axis axis) const;

  ParallelConfig parallel_;
  std::int64_t num_ranks_ = 1;
  std::int64_t expert_data_ = 1;
};

}  // namespace memphis
