// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/run_description.h"

#include <algorithm>

#include "csrc/config/validate.h"
#include "csrc/core/error.h"
#include "csrc/plan/context_exchange.h"
#include "csrc/plan/tensor_chunks.h"

namespace memphis {

std::int64_t RunDescription::num_micro_batches() const {
  return std::max<std::int64_t>(
      batch.global_batch / (std::max<std::int64_t>(parallel.data, 1) * batch.micro_batch), 1);
}

double RunDescription::step_tokens() const {
  return static_cast<double>(batch.global_batch * batch.sequence_length);
}

Device described_device(const Config& config) {
  return config.run.device == DeviceChoice::cpu ? Device::cpu : Device::cuda;
}

RunDescription describe_run(const Config& config, DType compute, std::int64_t num_ranks) {
  const ModelConfig& model = config.model;
  if (compute == DType::f64) {
    throw ConfigError(
        "precision.compute is f64 (machines have rates of f32, bf16 and fp8); use another with "
        "--machine");
  }
  const bool is_bf16 = compute == DType::bf16;
  const Device device = described_device(config);
  const bool overlaps = config.parallel.overlap_experts != OverlapChoice::never &&
                        expert_overlap_refusal(config).empty();
  return {
      .model = {.num_layers = model.num_layers,
                .d_model = model.d_model,
                .num_heads = model.num_heads,
                .num_kv_heads = model.num_kv_heads,
                .head_dim = model.head_dim,
                .norms_of_layer = 4,
                .vocab_size = model.vocab_size,
                .tied_embeddings = model.tie_embeddings,
                .shared_ffn_dim = model.dense_ffn_dim,
                .expert_ffn_dim = model.ffn_dim,
                .num_experts = model.num_experts,
                .experts_per_token = model.experts_per_token},
      .parallel = config.parallel,
      .batch = config.batch,
      .techniques = {.products = is_bf16 ? Products::bf16 : Products::f32,
                     .tensor_beside = overlaps_tensor(config, device),
                     .expert_overlap = overlaps,
                     .context_overlap = config.parallel.context > 1 && prefers_ring(config, device),
                     .routed = true,
                     .experts_at_once = true,
                     .sharded_weights = config.parallel.zero == 3},
      .num_ranks = num_ranks};
}

DescribedParameters parameters_of(const ModelShape& m, std::int64_t layer) {
  const auto product = [](std::int64_t a, std::int64_t b) {
    return static_cast<double>(a) * static_cast<double>(b);
  };
  DescribedParameters result;
  const std::int64_t heads = m.num_heads;
  result.attention = product(heads * m.values(), m.d_model);
  result.attention += m.query_rank > 0 ? product(m.query_rank, m.d_model + heads * m.head_dim)
                                       : product(heads * m.head_dim, m.d_model);
  if (m.key_value_rank > 0) {
    result.attention +=
        product(m.d_model, m.key_value_rank + m.rotated_dim) +
        product(m.key_value_rank, heads * (m.head_dim - m.rotated_dim + m.values()));
  } else {
    result.attention += product(m.num_kv_heads * (m.head_dim + m.values()), m.d_model);
  }
  const std::int64_t matrices = m.gated ? 3 : 2;
  if (m.has_experts(layer)) {
    result.dense = product(matrices * m.shared_ffn_dim, m.d_model);
    result.one_expert = product(matrices * m.expert_ffn_dim, m.d_model);
  } else {
    result.dense = product(matrices * m.dense_ffn_dim, m.d_model);
  }
  return result;
}

DescribedFlops flops_per_token(const ModelShape& m, std::int64_t sequence_length) {
  double matrices = 0;
  double scores = 0;
  const std::int64_t layers = m.num_layers + m.predicted_layers;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const DescribedParameters of_layer = parameters_of(m, layer);
    matrices += of_layer.attention + of_layer.dense;
    if (m.has_experts(layer)) {
      matrices += static_cast<double>(m.experts_per_token) * of_layer.one_expert +
                  static_cast<double>(m.num_experts * m.d_model);
    }
    const bool cut = m.window > 0 && layer % 2 == 0;
    const double seen =
        static_cast<double>(cut ? std::min(2 * m.window, sequence_length) : sequence_length);
    scores += seen * static_cast<double>(m.num_heads * (m.head_dim + m.values()));
  }
  matrices += static_cast<double>((1 + m.predicted_layers) * m.vocab_size * m.d_model);
  return {.halved = 6 * matrices + 3 * scores, .unhalved = 6 * matrices + 6 * scores};
}

}  // namespace memphis
