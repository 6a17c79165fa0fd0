// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/share.h"

namespace memphis {
namespace {

constexpr double kMebi = 1024.0 * 1024.0;

}  // namespace

Range Piece::of(std::int64_t n) const {
  const std::int64_t begin = n * index / count;
  return {.begin = begin, .count = n * (index + 1) / count - begin};
}

Share make_share(const ParallelConfig& parallel, const Mesh& mesh, std::int64_t rank) {
  const auto piece = [&](Axis axis) {
    return Piece{.index = mesh.index(axis, rank), .count = mesh.degree(axis)};
  };
  return {.tensor = piece(Axis::tensor),
          .expert = piece(Axis::expert),
          .expert_tensor = piece(Axis::expert_tensor),
          .data = piece(Axis::data_context),
          .expert_data = piece(Axis::expert_data),
          .stage = piece(Axis::stage),
          .sequence_parallel = parallel.sequence_parallel,
          .shard_optimizer = parallel.zero > 0,
          .shard_gradients = parallel.zero > 1,
          .bucket_bytes = static_cast<std::int64_t>(parallel.bucket_mib * kMebi),
          .expert_buffer = parallel.expert_buffer};
}

SampleShare::SampleShare(const BatchConfig& batch, const Share& share)
    : micro_batch_(batch.micro_batch),
      num_sequences_(batch.global_batch / share.data.count),
      data_(share.data) {}

std::int64_t SampleShare::place(std::int64_t i) const {
  return (i / micro_batch_ * data_.count + data_.index) * micro_batch_ + i % micro_batch_;
}

}  // namespace memphis
