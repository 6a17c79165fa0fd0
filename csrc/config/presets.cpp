// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/presets.h"

#include <array>
#include <string>

#include "csrc/core/error.h"

namespace memphis {
namespace {

// Source: xai-org/grok-1, run.py and model.py.
ModelConfig grok_1() {
  ModelConfig model;
  model.preset = "grok-1";
  model.vocab_size = 131072;
  model.num_layers = 64;
  model.d_model = 6144;
  model.num_heads = 48;
  model.num_kv_heads = 8;
  model.head_dim = 128;
  model.ffn_dim = 32768;
  model.num_experts = 8;
  model.experts_per_token = 2;
  model.dense_ffn_dim = 0;
  model.embedding_multiplier = 78.38367176906169;    // sqrt(6144)
  model.output_multiplier = 0.5773502691896257;      // 1 / sqrt(3)
  model.attention_multiplier = 0.08838834764831845;  // 1 / sqrt(128)
  model.attention_cap = 30;
  model.router_cap = 0;
  model.final_cap = 0;
  model.attention_temperature_len = 0;
  model.rope_theta = 10000;
  model.tie_embeddings = true;
  model.norm_eps = 1e-5;
  model.pad_id = 0;
  model.max_sequence_length = 8192;
  return model;
}

// Source: config.json of xai-org/grok-2. rope_theta is the base after the extension to 131072
// positions, to be used as it stands; the scale of attention is not in the file, SGLang's grok.py
// takes 1 / sqrt(head_dim).
ModelConfig grok_2() {
  ModelConfig model;
  model.preset = "grok-2";
  model.vocab_size = 131072;
  model.num_layers = 64;
  model.d_model = 8192;
  model.num_heads = 64;
  model.num_kv_heads = 8;
  model.head_dim = 128;
  model.ffn_dim = 16384;
  model.num_experts = 8;
  model.experts_per_token = 2;
  model.dense_ffn_dim = 32768;
  model.embedding_multiplier = 90.50966799187809;  // sqrt(8192)
  model.output_multiplier = 0.5;
  model.attention_multiplier = 0.08838834764831845;  // 1 / sqrt(128)
  model.attention_cap = 30;
  model.router_cap = 30;
  model.final_cap = 50;
  model.attention_temperature_len = 1024;
  model.rope_theta = 208533496;
  model.tie_embeddings = false;
  model.norm_eps = 1e-5;
  model.pad_id = 0;
  model.max_sequence_length = 131072;
  return model;
}

struct Preset {
  std::string_view name;
  ModelConfig (*make)();
};
constexpr std::array kPresets = {Preset{"grok-1", grok_1}, Preset{"grok-2", grok_2}};

}  // namespace

std::vector<std::string_view> preset_names() {
  std::vector<std::string_view> names;
  for (const Preset& entry : kPresets) {
    names.push_back(entry.name);
  }
  return names;
}

ModelConfig preset(std::string_view name) {
  for (const Preset& entry : kPresets) {
    if (entry.name == name) {
      return entry.make();
    }
  }
  require(false, "there is no preset " + std::string(name));
  return {};
}

}  // namespace memphis
