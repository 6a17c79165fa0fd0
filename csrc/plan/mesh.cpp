// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/mesh.h"

#include <string>

#include "csrc/core/error.h"

namespace memphis {

std::string_view name_of(Axis axis) {
  switch (axis) {
    case Axis::pipeline:
      return "pipeline";
    case Axis::data:
      return "data";
    case Axis::context:
      return "context";
    case Axis::tensor:
      return "tensor";
    case Axis::expert_data:
      return "expert_data";
    case Axis::expert:
      return "expert";
    case Axis::expert_tensor:
      return "expert_tensor";
    case Axis::data_context:
      return "data_context";
    case Axis::sequence_ranks:
      return "sequence_ranks";
    case Axis::stage_ranks:
      return "stage_ranks";
    case Axis::expert_ranks:
      return "expert_ranks";
    case Axis::world:
      return "world";
  }
  return "?";
}

std::vector<int> RankGroup::ranks() const {
  std::vector<int> result;
  result.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    result.push_back(static_cast<int>(first + i * stride));
  }
  return result;
}

Mesh::Mesh(const ParallelConfig& parallel, std::int64_t num_ranks)
    : parallel_(parallel), num_ranks_(num_ranks) {
  const std::int64_t stage = parallel.data * parallel.context * parallel.tensor;
  const std::int64_t expert_ranks = parallel.expert * parallel.expert_tensor;
  require(parallel.pipeline >= 1 && stage >= 1 && parallel.pipeline * stage == num_ranks,
          "the degrees of the mesh multiply to the number of ranks, " + std::to_string(num_ranks));
  require(expert_ranks >= 1 && stage % expert_ranks == 0,
          "expert x expert_tensor divides the ranks of a pipeline stage, " + std::to_string(stage));
  expert_data_ = stage / expert_ranks;
}

// Where an axis lies in the fold that has it: ranks along it are `stride` apart.
struct Mesh::Place {
  std::int64_t stride;
  std::int64_t degree;
};

Mesh::Place Mesh::place(Axis axis) const {
  const ParallelConfig& p = parallel_;
  const std::int64_t expert_ranks = p.expert * p.expert_tensor;
  switch (axis) {
    case Axis::tensor:
      return {.stride = 1, .degree = p.tensor};
    case Axis::context:
      return {.stride = p.tensor, .degree = p.context};
    case Axis::data:
      return {.stride = p.context * p.tensor, .degree = p.data};
    case Axis::data_context:
      return {.stride = p.tensor, .degree = p.data * p.context};
    case Axis::expert_tensor:
      return {.stride = 1, .degree = p.expert_tensor};
    case Axis::expert:
      return {.stride = p.expert_tensor, .degree = p.expert};
    case Axis::expert_ranks:
      return {.stride = 1, .degree = expert_ranks};
    case Axis::expert_data:
      return {.stride = expert_ranks, .degree = expert_data_};
    case Axis::sequence_ranks:
      return {.stride = 1, .degree = p.context * p.tensor};
    case Axis::stage_ranks:
      return {.stride = 1, .degree = num_ranks_ / p.pipeline};
    case Axis::pipeline:
      return {.stride = num_ranks_ / p.pipeline, .degree = p.pipeline};
    case Axis::world:
      return {.stride = 1, .degree = num_ranks_};
  }
  throw ContractError("there is no such axis");
}

std::int64_t Mesh::degree(Axis axis) const {
  return place(axis).degree;
}

std::int64_t Mesh::index(Axis axis, std::int64_t rank) const {
  const Place p = place(axis);
  return rank / p.stride % p.degree;
}

RankGroup Mesh::group(Axis axis, std::int64_t rank) const {
  require(rank >= 0 && rank < num_ranks_, "a mesh has the ranks that it was made for");
  const Place p = place(axis);
  return {.first = rank - index(axis, rank) * p.stride, .stride = p.stride, .count = p.degree};
}

std::int64_t Mesh::at(Axis axis, std::int64_t index, std::int64_t rank) const {
  const RankGroup along = group(axis, rank);
  require(index >= 0 && index < along.count, "an axis of a mesh has places from 0 to its degree");
  return along.first + index * along.stride;
}

Coordinates Mesh::coordinates(std::int64_t rank) const {
  return {.pipeline = index(Axis::pipeline, rank),
          .data = index(Axis::data, rank),
          .context = index(Axis::context, rank),
          .tensor = index(Axis::tensor, rank),
          .expert_data = index(Axis::expert_data, rank),
          .expert = index(Axis::expert, rank),
          .expert_tensor = index(Axis::expert_tensor, rank)};
}

}  // namespace memphis
