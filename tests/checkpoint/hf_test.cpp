// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/hf.h"

#include <cmath>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "csrc/checkpoint/npy.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "tests/checkpoint/source.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using test::error_text;
using test::follows_grammar;
using test::ramp;
using test::source;
using test::TemporaryDirectory;

// The least that describes a model.
Json minimal() {
  return {
      {"vocab_size", 64},
      {"hidden_size", 32},
      {"intermediate_size", 176},
      {"num_hidden_layers", 3},
      {"num_attention_heads", 4},
      {"num_local_experts", 8},
      {"num_experts_per_tok", 2},
      {"embedding_multiplier_scale", 5.5},
      {"output_multiplier_scale", 0.5},
  };
}

// Of Grok-2 as released, without the lengths of its YaRN keys, which rope_type "original" leaves
// unused.
const char* const kGrok2 = R"({
  "architectures": ["Grok1ForCausalLM"], "embedding_multiplier_scale": 90.50966799187809,
  "output_multiplier_scale": 0.5, "vocab_size": 131072, "hidden_size": 8192,
  "intermediate_size": 32768, "moe_intermediate_size": 16384, "max_position_embeddings": 131072,
  "num_experts_per_tok": 2, "num_local_experts": 8, "residual_moe": true, "num_attention_heads": 64,
  "num_key_value_heads": 8, "num_hidden_layers": 64, "head_dim": 128, "rms_norm_eps": 1e-05,
  "final_logit_softcapping": 50, "attn_logit_softcapping": 30.0, "router_logit_softcapping": 30.0,
  "rope_theta": 208533496, "attn_temperature_len": 1024, "sliding_window_size": -1,
  "global_attn_every_n": 1, "model_type": "git", "torch_dtype": "bfloat16", "rope_type": "original",
  "original_max_position_embeddings": 8192, "scaling_factor": 16.0, "extrapolation_factor": 1.0,
  "attn_factor": 1.0, "beta_fast": 8, "beta_slow": 1})";

ModelConfig read(const std::string& text) {
  const TemporaryDirectory directory;
  return read_hf_config(directory.write("config.json", text));
}

std::string refusal(const Json& config) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("config.json", config.dump());
  const std::string text = error_text<CheckpointError>([&] { read_hf_config(path); });
  EXPECT_TRUE(follows_grammar(text));
  EXPECT_TRUE(text.starts_with(path + ": ")) << text;
  return text.substr(std::min(text.size(), path.size() + 2));
}

TEST(HfConfig, AbsenceMeansWhatItMeansForTheReleasedModels) {
  const ModelConfig model = read(minimal().dump());
  EXPECT_EQ(model.num_kv_heads, 4);
  EXPECT_EQ(model.head_dim, 8);
  EXPECT_EQ(model.ffn_dim, 176);
  EXPECT_EQ(model.dense_ffn_dim, 0);
  EXPECT_EQ(model.attention_multiplier, 1.0 / std::sqrt(8.0));
  EXPECT_EQ(model.attention_cap, 30.0);
  EXPECT_EQ(model.router_cap, 0.0);
  EXPECT_EQ(model.final_cap, 0.0);
  EXPECT_EQ(model.attention_temperature_len, 0);
  EXPECT_EQ(model.rope_theta, 10000.0);
  EXPECT_FALSE(model.tie_embeddings);
  EXPECT_EQ(model.norm_eps, 1e-5);
  EXPECT_EQ(model.pad_id, -1);
  EXPECT_EQ(model.max_sequence_length, 0);
}

TEST(HfConfig, ReadsGrok2) {
  const ModelConfig model = read(kGrok2);
  EXPECT_EQ(model.vocab_size, 131072);
  EXPECT_EQ(model.num_layers, 64);
  EXPECT_EQ(model.d_model, 8192);
  EXPECT_EQ(model.num_heads, 64);
  EXPECT_EQ(model.num_kv_heads, 8);
  EXPECT_EQ(model.head_dim, 128);
  EXPECT_EQ(model.ffn_dim, 16384);
  EXPECT_EQ(model.dense_ffn_dim, 32768);
  EXPECT_EQ(model.num_experts, 8);
  EXPECT_EQ(model.experts_per_token, 2);
  EXPECT_EQ(model.embedding_multiplier, 90.50966799187809);
  EXPECT_EQ(model.output_multiplier, 0.5);
  EXPECT_EQ(model.attention_multiplier, 1.0 / std::sqrt(128.0));
  EXPECT_EQ(model.attention_cap, 30.0);
  EXPECT_EQ(model.router_cap, 30.0);
  EXPECT_EQ(model.final_cap, 50.0);
  EXPECT_EQ(model.attention_temperature_len, 1024);
  EXPECT_EQ(model.rope_theta, 208533496.0);
  EXPECT_FALSE(model.tie_embeddings);
  EXPECT_EQ(model.pad_id, -1);
  EXPECT_EQ(model.max_sequence_length, 131072);
}

TEST(HfConfig, AcceptsBothSpellings) {
  Json config = minimal();
  config.erase("num_local_experts");
  config["num_experts"] = 4;
  config["max_attn_value"] = 20.0;
  config["moe_intermediate_size"] = 88;  // without residual_moe: the experts' width
  config["pad_token_id"] = nullptr;
  config["sliding_window"] = nullptr;
  const ModelConfig model = read(config.dump());
  EXPECT_EQ(model.num_experts, 4);
  EXPECT_EQ(model.attention_cap, 20.0);
  EXPECT_EQ(model.ffn_dim, 88);
  EXPECT_EQ(model.dense_ffn_dim, 0);
  EXPECT_EQ(model.pad_id, -1);
}

TEST(HfConfig, NamesEveryKeyThatIsMissing) {
  const Json whole = minimal();
  for (const auto& [key, value] : whole.items()) {
    Json config = whole;
    config.erase(key);
    EXPECT_EQ(refusal(config),
              key +
                  " is missing (the model is not defined without it); use the config.json that "
                  "belongs to the weights");
  }
  Json residual = whole;
  residual["residual_moe"] = true;
  EXPECT_TRUE(refusal(residual).starts_with("moe_intermediate_size is missing"));
}

TEST(HfConfig, NamesWhatItRefuses) {
  struct Row {
    const char* key;
    Json value;
    const char* message;  // its beginning
  };
  const Row rows[] = {
      {"vocab_size", "64", "vocab_size is \"64\" (it is a whole number from 1 to 2^31); correct"},
      {"vocab_size", 64.5, "vocab_size is 64.5 (it is a whole number"},
      {"vocab_size", 0, "vocab_size is 0 (it is a whole number"},
      {"vocab_size", -1, "vocab_size is -1 (it is a whole number"},
      {"vocab_size",
       std::uint64_t{1} << 63U,
       "vocab_size is 9223372036854775808 (it is a whole number"},
      {"vocab_size", true, "vocab_size is true (it is a whole number"},
      {"num_attention_heads", 5, "head_dim is missing (hidden_size 32 is not a multiple of"},
      {"num_key_value_heads",
       3,
       "num_key_value_heads is 3 and num_attention_heads 4 (each key head"},
      {"head_dim", 7, "head_dim is 7 (rotary embeddings turn pairs of its elements)"},
      {"num_experts",
       4,
       "num_experts is 4 and num_local_experts is 8 (they are two names of one value)"},
      {"num_experts_per_tok", 9, "num_experts_per_tok is 9 (there are 8 experts)"},
      {"embedding_multiplier_scale",
       "5",
       "embedding_multiplier_scale is \"5\" (it is a number, not"},
      {"router_logit_softcapping",
       -1,
       "router_logit_softcapping is -1 (it is a number, not negative)"},
      {"rms_norm_eps", 0, "rms_norm_eps is 0 (it is a positive number)"},
      {"rope_theta", 0.0, "rope_theta is 0 (it is a positive number)"},
      {"tie_word_embeddings", 1, "tie_word_embeddings is 1 (it is true or false)"},
      {"pad_token_id", 64, "pad_token_id is 64 (vocab_size is 64)"},
      {"pad_token_id", -2, "pad_token_id is -2 (it is a whole number from -1 to 2^31)"},
      {"hidden_act",
       "silu",
       "hidden_act is \"silu\" (experts use the tanh form of GELU: gelu_new,"},
      {"hidden_act", "gelu", "hidden_act is \"gelu\" (experts use the tanh form of GELU"},
      {"sliding_window_size",
       128,
       "sliding_window_size is 128 (attention sees all earlier positions)"},
      {"sliding_window", 4096, "sliding_window is 4096 (attention sees all earlier positions)"},
      {"rope_type",
       "yarn",
       "rope_type is \"yarn\" (rotations are not rescaled: default, original)"},
      {"rope_scaling", {{"rope_type", "linear"}}, "rope_scaling is {\"rope_type\":\"linear\"} (it"},
      {"quantization_config", {{"bits", 8}}, "quantization_config is {\"bits\":8} (it changes"},
      {"attention_bias", true, "attention_bias is true (Grok has nothing of the kind)"},
      {"architectures",
       {"LlamaForCausalLM"},
       "architectures is [\"LlamaForCausalLM\"] (known: Grok1"},
  };
  for (const Row& row : rows) {
    Json config = minimal();
    config[row.key] = row.value;
    const std::string text = refusal(config);
    EXPECT_TRUE(text.starts_with(row.message)) << text;
  }
}

TEST(HfConfig, ReadsWhatItWrites) {
  Json tied = minimal();
  tied["tie_word_embeddings"] = true;
  tied["pad_token_id"] = 3;
  tied["num_key_value_heads"] = 2;
  tied["max_position_embeddings"] = 4096;
  tied["rope_theta"] = 1e6;
  tied["attn_output_multiplier"] = 0.1;
  for (const std::string& text : {std::string(kGrok2), minimal().dump(), tied.dump()}) {
    const ModelConfig model = read(text);
    const std::string written = write_hf_config(model, DType::bf16);
    EXPECT_EQ(write_hf_config(read(written), DType::bf16), written);
    EXPECT_EQ(Json::parse(written)["torch_dtype"], "bfloat16");
    EXPECT_EQ(Json::parse(written)["embedding_multiplier_scale"], model.embedding_multiplier);
    EXPECT_EQ(Json::parse(written)["tie_word_embeddings"], model.tie_embeddings);
    EXPECT_EQ(read(written).pad_id, model.pad_id);
    EXPECT_EQ(read(written).dense_ffn_dim, model.dense_ffn_dim);
    EXPECT_EQ(read(written).attention_temperature_len, model.attention_temperature_len);
  }
  EXPECT_THROW(write_hf_config(read(kGrok2), DType::i32), ContractError);
}

struct Folder : testing::Test {
  void write_shard(const std::string& name, const std::vector<TensorSource>& tensors) {
    write_safetensors(directory.path() / name, tensors);
  }
  void write_index(const Json& weight_map) {
    directory.write("model.safetensors.index.json", Json{{"weight_map", weight_map}}.dump());
  }
  std::string refusal() {
    const std::string text =
        error_text<CheckpointError>([&] { const HfTensors tensors(directory.path()); });
    EXPECT_TRUE(follows_grammar(text));
    return text;
  }
  TemporaryDirectory directory;
};

TEST_F(Folder, ReadsShardsThroughTheIndex) {
  write_shard("a.safetensors", {source<float>("x", {2, 2}, ramp(4))});
  write_shard("b.safetensors", {source<bf16>("y", {2}, {bf16(1.5F), bf16(-2.0F)})});
  write_index({{"x", "a.safetensors"}, {"y", "b.safetensors"}});
  const HfTensors tensors(directory.path());
  std::vector<float> values(4);
  tensors.read("x", TensorView(values.data(), {2, 2}, DType::f32, Device::cpu));
  EXPECT_EQ(values, ramp(4));
  tensors.read("y", TensorView(values.data(), {2}, DType::f32, Device::cpu));
  EXPECT_EQ(values[0], 1.5F);
  EXPECT_TRUE(tensors.contains("y"));
  EXPECT_FALSE(tensors.contains("z"));
  EXPECT_THROW(tensors.read("x", TensorView(values.data(), {4}, DType::f32, Device::cpu)),
               CheckpointError);
  EXPECT_NE(error_text<CheckpointError>([&] { tensors.file_of("z"); }).find("no tensor 'z'"),
            std::string::npos);
}

TEST_F(Folder, PrefersTheSingleFile) {
  write_shard("model.safetensors", {source<float>("x", {1}, {1.0F})});
  write_index({{"x", "gone.safetensors"}});
  EXPECT_TRUE(HfTensors(directory.path()).contains("x"));
}

TEST_F(Folder, NamesWhatIsMissing) {
  directory.write("pytorch_model.bin", "x");
  EXPECT_NE(refusal().find("has neither model.safetensors nor model.safetensors.index.json"),
            std::string::npos);
  write_shard("a.safetensors", {source<float>("x", {1}, {1.0F})});
  write_index({{"x", "b.safetensors"}});
  EXPECT_NE(refusal().find("shard 'b.safetensors' is missing (tensor 'x' lies in it)"),
            std::string::npos);
  write_index({{"y", "a.safetensors"}});
  EXPECT_NE(refusal().find("tensor 'y' is not in 'a.safetensors'"), std::string::npos);
  write_index({{"x", "../a.safetensors"}});
  EXPECT_NE(refusal().find("tensor 'x' lies in '../a.safetensors' (a shard is named by a bare"),
            std::string::npos);
  directory.write("model.safetensors.index.json", "{}");
  EXPECT_NE(refusal().find("'weight_map' is missing"), std::string::npos);
}

TEST(HfGolden, ReadsTheModelAndItsLogits) {
  for (const char* name : {"grok_tiny", "grok_tiny_nopad"}) {
    const fs::path folder = fs::path("../shared/golden") / name;
    if (!fs::exists(folder)) {
      GTEST_SKIP() << folder << " is not there";
    }
    const ModelConfig model = read_hf_config(folder / "config.json");
    EXPECT_EQ(model.d_model, 32);
    EXPECT_EQ(model.num_layers, 3);
    EXPECT_EQ(model.num_kv_heads, 2);
    EXPECT_EQ(model.output_multiplier, 0.5773502691896257);
    EXPECT_TRUE(model.tie_embeddings);
    EXPECT_EQ(model.pad_id, 0);

    const HfTensors tensors(folder);
    std::vector<float> embedding(64 * 32);
    std::vector<float> head(64 * 32);
    tensors.read("model.embed_tokens.weight",
                 TensorView(embedding.data(), {64, 32}, DType::f32, Device::cpu));
    tensors.read("lm_head.weight", TensorView(head.data(), {64, 32}, DType::f32, Device::cpu));
    EXPECT_EQ(embedding, head);
    std::vector<float> down(32 * 176);
    tensors.read("model.layers.2.block_sparse_moe.experts.7.w2.weight",
                 TensorView(down.data(), {32, 176}, DType::f32, Device::cpu));
    for (const float value : down) {
      ASSERT_TRUE(std::isfinite(value));
    }

    // The logits come from NumPy: what is read of them is written as NumPy wrote it.
    const NpyArray logits = read_npy(folder / "logits.npy");
    EXPECT_EQ(logits.dims.back(), 64);
    const TemporaryDirectory directory;
    NpyWriter writer(directory.path() / "logits.npy", logits.dims);
    writer.write(logits.values);
    writer.close();
    EXPECT_EQ(read_text(directory.path() / "logits.npy"), read_text(folder / "logits.npy"));
  }
}

}  // namespace
}  // namespace memphis
