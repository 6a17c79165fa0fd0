// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/config/config.h"
#include "csrc/plan/dims.h"
#include "kernels/attention/attention.h"

// Where heads lie in a token of a fused buffer: queries, then keys, then values.
namespace memphis {

inline kernels::HeadsView queries_of(const TensorView& qkv_TCH, const Dims& d) {
  return {qkv_TCH, 0, d.local_N};
}
inline kernels::HeadsView keys_of(const TensorView& qkv_TCH, const Dims& d) {
  return {qkv_TCH, d.local_N, d.local_G};
}
inline kernels::HeadsView values_of(const TensorView& qkv_TCH, const Dims& d) {
  return {qkv_TCH, d.local_N + d.local_G, d.local_G};
}
inline kernels::HeadsView keys_and_values_of(const TensorView& qkv_TCH, const Dims& d) {
  return {qkv_TCH, d.local_N, 2 * d.local_G};
}

inline kernels::AttentionScore score_of(const ModelConfig& model) {
  return {.scale = static_cast<float>(model.attention_multiplier),
          .cap = static_cast<float>(model.attention_cap),
          .temperature_len = model.attention_temperature_len};
}

// attention_backward(), with the scratch that the plan has for it: with less it would take slower
// kernels, and say nothing, so that it is a ContractError.
void differentiate_attention(const kernels::AttentionBackward& op, Stream stream);

}  // namespace memphis
