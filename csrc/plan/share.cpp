// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/share.h"

#include <utility>

namespace memphis {
namespace {

constexpr double kMebi = 1024.0 * 1024.0;

}  // namespace

Share make_share(const ModelConfig& model,
                 const ParallelConfig& parallel,
                 const Mesh& mesh,
                 std::int64_t rank) {
  const auto piece = [&](Axis axis) {
    return Piece{.index = mesh.index(axis, rank), .count = mesh.degree(axis)};
  };
  std::vector<StageLayers> stages;
  const PipelineShape shape = pipeline_shape(parallel, 1);
  if (shape.num_stages() > 1) {
    const StageLayout layout = stage_layout(model, parallel);
    for (std::int64_t chunk = 0; chunk < shape.num_chunks; ++chunk) {
      const std::int64_t stage =
          shape.stage_of({.rank = mesh.index(Axis::pipeline, rank), .chunk = chunk});
      stages.push_back(layout[static_cast<std::size_t>(stage)]);
    }
  }
  return {.tensor = piece(Axis::tensor),
          .expert = piece(Axis::expert),
          .expert_tensor = piece(Axis::expert_tensor),
          .data = piece(Axis::data),
          .context = piece(Axis::context),
          .data_context = piece(Axis::data_context),
          .expert_data = piece(Axis::expert_data),
          .stage_ranks = piece(Axis::stage_ranks),
          .stages = std::move(stages),
          .sequence_parallel = parallel.sequence_parallel,
          .shard_optimizer = parallel.zero > 0,
          .shard_gradients = parallel.zero > 1,
          .shard_weights = parallel.zero > 2,
          .bucket_bytes = static_cast<std::int64_t>(parallel.bucket_mib * kMebi),
          .expert_buffer = parallel.expert_buffer};
}

std::vector<StageLayers> stages_of(const ModelConfig& model, const Share& share) {
  return share.stages.empty() ? stages_of_counts(model.num_layers, {model.num_layers})
                              : share.stages;
}

SampleShare::SampleShare(const BatchConfig& batch, const Share& share)
    : micro_batch_(batch.micro_batch),
      num_sequences_(batch.global_batch / share.data.count),
      data_(share.data) {}

std::int64_t SampleShare::place(std::int64_t i) const {
  return (i / micro_batch_ * data_.count + data_.index) * micro_batch_ + i % micro_batch_;
}

}  // namespace memphis
