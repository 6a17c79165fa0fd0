// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/flops.h"

#include "csrc/plan/dims.h"
#include "csrc/plan/parameters.h"

namespace memphis {

ForwardFlops forward_flops_per_token(const ModelConfig& model, std::int64_t sequence_length) {
  const Dims d = make_dims(model, 1, sequence_length);
  const ParameterCounts counts = count_parameters(model);
  return {.matrices = 2.0 * static_cast<double>(counts.matrices + counts.experts / d.E * d.K),
          .scores = 2.0 * static_cast<double>(d.local_N * d.H * d.S),
          .head = 2.0 * static_cast<double>(d.V * d.D)};
}

ModelFlops model_flops_per_token(const ModelConfig& model, std::int64_t sequence_length) {
  const ForwardFlops forward = forward_flops_per_token(model, sequence_length);
  const auto layers = static_cast<double>(model.num_layers);
  const double matrices = 3 * (layers * forward.matrices + forward.head);
  const double scores = 3 * layers * forward.scores;
  return {.halved = matrices + scores, .unhalved = matrices + 2 * scores};
}

}  // namespace memphis
