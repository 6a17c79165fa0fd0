// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/flops.h"

#include "csrc/plan/dims.h"

namespace memphis {

ModelFlops model_flops_per_token(const ModelConfig& model, std::int64_t sequence_length) {
  const Dims d = make_dims(model, 1, sequence_length);
  const std::int64_t attention = 2 * d.D * d.N * d.H + 2 * d.D * d.G * d.H;
  const std::int64_t experts = d.K * 3 * d.D * d.F + d.D * d.E;
  const std::int64_t dense = 3 * d.D * d.dense_F;
  const double matrices =
      6.0 * static_cast<double>(d.L * (attention + experts + dense) + d.V * d.D);
  const double scores = 6.0 * static_cast<double>(d.L * d.N * d.H * d.S);
  return {.halved = matrices + scores, .unhalved = matrices + 2 * scores};
}

}  // namespace memphis
