// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/config/config.h"

namespace memphis {

// FLOP of one token in a forward pass: the products of `matrices` and `scores` in each layer, that
// of the head once. Scores are counted for the causal half of the square.
struct ForwardFlops {
  double matrices = 0;
  double scores = 0;
  double head = 0;
};
ForwardFlops forward_flops_per_token(const ModelConfig& model, std::int64_t sequence_length);

// Model FLOP of one token, forward and backward (three times the forward's). Multiplications with
// matrices that every token meets: attention's four, its K experts' three, the router, the dense
// FFN, the head once; the embedding is a lookup and counts nothing; recomputation counts nothing.
//
// Attention scores are counted for the causal half of the square (`halved`), as Megatron-LM and
// llm.c do today; `unhalved` counts the whole square, as tables before 2025 do.
struct ModelFlops {
  double halved = 0;
  double unhalved = 0;
};
ModelFlops model_flops_per_token(const ModelConfig& model, std::int64_t sequence_length);

}  // namespace memphis
