// SPDX-License-Identifier: Apache-2.0
#include "tests/support/golden_model.h"

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "csrc/checkpoint/safetensors.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

// Uniform in [-0.75, 0.75), about 1 for norms: SplitMix64 (Steele et al. 2014) of the name's FNV-1a
// hash and the index. In plain arithmetic, so that it is the same in every language.
std::vector<float> weight(const std::string& name, std::int64_t count) {
  std::uint64_t state = 0xCBF29CE484222325U;
  for (const char letter : name) {
    state = (state ^ static_cast<unsigned char>(letter)) * 0x100000001B3U;
  }
  const double center = name.ends_with("norm.weight") ? 1 : 0;
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint64_t z = state + static_cast<std::uint64_t>(i + 1) * 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30U) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27U) * 0x94D049BB133111EBU;
    const double unit = static_cast<double>((z ^ z >> 31U) >> 40U) * 0x1p-24;
    values.push_back(static_cast<float>(0.75 * (2 * unit - 1) + center));
  }
  return values;
}

TensorSource source_of_weight(const std::string& name, std::vector<std::int64_t> shape) {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) {
    count *= dim;
  }
  // The head of a model that ties it is the embedding, under both names.
  const std::string origin = name == "lm_head.weight" ? "model.embed_tokens.weight" : name;
  return {.name = name,
          .dtype = DType::f32,
          .shape = std::move(shape),
          .emit = [values = weight(origin, count)](const ByteSink& sink) {
            sink(std::as_bytes(std::span(values)));
          }};
}

}  // namespace

GoldenModel::GoldenModel(const std::string& name) {
  const fs::path stored = fs::path("tests/model/golden") / name;
  for (const char* file : {"config.json", "tokens.json", "logits.npy"}) {
    fs::copy_file(stored / file, folder() / file);
  }
  const auto config = parse_json(read_text(stored / "config.json")).value();
  const std::int64_t D = config["hidden_size"];
  const std::int64_t F = config["intermediate_size"];
  const std::int64_t E = config["num_local_experts"];
  const std::int64_t V = config["vocab_size"];
  const std::int64_t H = config["head_dim"];
  const std::int64_t q = H * config["num_attention_heads"].get<std::int64_t>();
  const std::int64_t kv = H * config["num_key_value_heads"].get<std::int64_t>();
  std::vector<TensorSource> tensors;
  const auto add = [&](const std::string& tensor, std::vector<std::int64_t> shape) {
    tensors.push_back(source_of_weight(tensor, std::move(shape)));
  };
  add("model.embed_tokens.weight", {V, D});
  add("lm_head.weight", {V, D});
  add("model.norm.weight", {D});
  for (int i = 0; i < config["num_hidden_layers"].get<int>(); ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    for (const char* norm : {"pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm"}) {
      add(layer + norm + ".weight", {D});
    }
    add(layer + "self_attn.q_proj.weight", {q, D});
    add(layer + "self_attn.k_proj.weight", {kv, D});
    add(layer + "self_attn.v_proj.weight", {kv, D});
    add(layer + "self_attn.o_proj.weight", {D, q});
    add(layer + "block_sparse_moe.gate.weight", {E, D});
    for (std::int64_t e = 0; e < E; ++e) {
      const std::string expert = layer + "block_sparse_moe.experts." + std::to_string(e) + ".";
      add(expert + "w1.weight", {F, D});
      add(expert + "w2.weight", {D, F});
      add(expert + "w3.weight", {F, D});
    }
  }
  write_safetensors(folder() / "model.safetensors", tensors);
}

}  // namespace memphis::test
