// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/config/config.h"

namespace memphis {

// The sizes that tensors have on this rank, by the letters of csrc/core/tensor.h.
struct Dims {
  std::int64_t B = 0;  // sequences of a micro-batch
  std::int64_t S = 0;
  std::int64_t T = 0;
  std::int64_t D = 0;
  std::int64_t N = 0;
  std::int64_t G = 0;
  std::int64_t C = 0;
  std::int64_t H = 0;
  std::int64_t E = 0;
  std::int64_t K = 0;
  std::int64_t R = 0;
  std::int64_t F = 0;
  std::int64_t dense_F = 0;  // 0: no dense FFN beside the experts
  std::int64_t V = 0;
  std::int64_t L = 0;
  // Tokens whose logits exist at one time: [chunk, V] is the largest tensor of a small model.
  std::int64_t head_chunk = 0;
};

Dims make_dims(const ModelConfig& model, std::int64_t num_sequences, std::int64_t sequence_length);

}  // namespace memphis
