// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/hf.h"

#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "csrc/checkpoint/npy.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "tests/checkpoint/source.h"
#include "tests/support/error_text.h"
#include "tests/support/golden_model.h"
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
      {"rope_theta", 0.5, "rope_theta is 0.5 (it is 1 to 1e+12, as kernels"},
      {"rms_norm_eps", 1e-30, "rms_norm_eps is 1e-30 (it is 1e-20 to 1, as kernels"},
      {"embedding_multiplier_scale", 0, "embedding_multiplier_scale is 0 (it is 1.175494e-38 to"},
      {"output_multiplier_scale", 1e308, "output_multiplier_scale is 1e+308 (it is 1.175494e-38"},
      {"attn_output_multiplier", 1e-50, "attn_output_multiplier is 1e-50 (it is 1.175494e-38"},
      {"attn_logit_softcapping", 1e308, "attn_logit_softcapping is 1e+308 (it is 1.175494e-38"},
      {"router_logit_softcapping", 1e-46, "router_logit_softcapping is 1e-46 (it is 1.175494e-38"},
      {"final_logit_softcapping", 1e39, "final_logit_softcapping is 1e+39 (it is 1.175494e-38 to"},
      {"attn_temperature_len", 1, "attn_temperature_len is 1 (the temperature divides by its"},
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
      {"rope_scaling",
       {{"rope_type", "linear"}},
       "rope_scaling is {\"rope_type\":\"linear\"} (rotations are not rescaled)"},
      {"rope_parameters", 7, "rope_parameters is 7 (it is an object)"},
      {"rope_parameters",
       {{"rope_type", "yarn"}, {"rope_theta", 1e4}},
       "rope_parameters.rope_type is \"yarn\" (rotations are not rescaled: default, original)"},
      {"rope_parameters", {{"type", "linear"}}, "rope_parameters.rope_type is \"linear\" (rot"},
      {"rope_parameters", {{"factor", 8.0}}, "rope_parameters.factor is 8.0 (rotations are not"},
      {"rope_parameters",
       {{"partial_rotary_factor", 0.5}},
       "rope_parameters.partial_rotary_factor is 0.5 (all of a head is rotated)"},
      {"rope_parameters", {{"rope_theta", 0}}, "rope_parameters.rope_theta is 0 (it is a positive"},
      {"rope_parameters", {{"full_attention", {{"rope_theta", 1}}}}, "rope_parameters.full_att"},
      {"quantization_config",
       {{"bits", 8}},
       "quantization_config is {\"bits\":8} (quantised weights are not read"},
      {"norm_topk_prob", true, "norm_topk_prob is true (Grok has nothing of the kind)"},
      {"partial_rotary_factor", 0.5, "partial_rotary_factor is 0.5 (Grok has nothing of the kind)"},
      {"n_shared_experts", 1, "n_shared_experts is 1 (Grok has nothing of the kind)"},
      {"layer_types", {"full_attention", "sliding_attention"}, "layer_types is [\"full_attent"},
      {"mlp_only_layers", {0}, "mlp_only_layers is [0] (every layer has experts)"},
      {"activation_function", "relu", "activation_function is \"relu\" (experts use the tanh"},
      {"scoring_func", "sigmoid", "scoring_func is \"sigmoid\" (the router's scores are a softmax"},
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

// As transformers 5 writes it.
TEST(HfConfig, ReadsRopeParameters) {
  Json config = minimal();
  config["rope_scaling"] = nullptr;
  config["rope_parameters"] = {{"rope_theta", 5e5}, {"rope_type", "default"}};
  EXPECT_EQ(read(config.dump()).rope_theta, 5e5);
  config["rope_parameters"] = {{"rope_theta", 5e5}, {"partial_rotary_factor", 1.0}};
  EXPECT_EQ(read(config.dump()).rope_theta, 5e5);
  config["rope_theta"] = 5e5;
  EXPECT_EQ(read(config.dump()).rope_theta, 5e5);
  config["rope_theta"] = 1e4;
  EXPECT_TRUE(refusal(config).starts_with(
      "rope_parameters.rope_theta is 500000.0 and rope_theta is 10000 (they are two names"));
  config["rope_parameters"] = {{"rope_type", "default"}};
  EXPECT_EQ(read(config.dump()).rope_theta, 1e4);
  config["rope_parameters"] = nullptr;
  EXPECT_EQ(read(config.dump()).rope_theta, 1e4);
  // Grok-2's, whose theta is the rescaled one.
  config.erase("rope_theta");
  config["rope_parameters"] = {
      {"rope_type", "original"}, {"rope_theta", 208533496}, {"factor", 16.0}, {"beta_fast", 8}};
  EXPECT_EQ(read(config.dump()).rope_theta, 208533496.0);
}

// Of hpcai-tech/grok-1, with what transformers adds to every config and does not bear on a forward
// pass.
TEST(HfConfig, ReadsTheConfigOfHpcai) {
  const ModelConfig model = read(R"({
    "architectures": ["Grok1ModelForCausalLM"], "attn_output_multiplier": 0.08838834764831845,
    "auto_map": {"AutoConfig": "configuration_grok_1.Grok1Config"}, "bos_token_id": 1,
    "embedding_multiplier_scale": 78.38367176906169, "eos_token_id": 2, "hidden_size": 6144,
    "intermediate_size": 32768, "max_attn_value": 30.0, "max_position_embeddings": 8192,
    "model_type": "grok-1", "num_attention_heads": 48, "num_experts": 8, "num_experts_per_tok": 2,
    "num_hidden_layers": 64, "num_key_value_heads": 8, "output_multiplier_scale": 0.5773502691896257,
    "output_router_logits": false, "pad_token_id": 0, "rms_norm_eps": 1e-05,
    "router_aux_loss_coef": 0.001, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    "transformers_version": "4.35.0", "use_cache": true, "vocab_size": 131072})");
  EXPECT_EQ(model.num_experts, 8);
  EXPECT_EQ(model.head_dim, 128);
  EXPECT_EQ(model.attention_cap, 30.0);
  EXPECT_EQ(model.dense_ffn_dim, 0);
  EXPECT_EQ(model.pad_id, 0);
  EXPECT_TRUE(model.tie_embeddings);
}

TEST(HfConfig, NamesWhatADownloadLeftInItsPlace) {
  const TemporaryDirectory directory;
  const std::string path = directory.write(
      "config.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 26133\n");
  const std::string text = error_text<CheckpointError>([&] { read_hf_config(path); });
  EXPECT_TRUE(text.starts_with(path + " is a Git LFS pointer to 26133 bytes (git clone")) << text;
  directory.write("config.json", "");
  EXPECT_NE(error_text<CheckpointError>([&] { read_hf_config(path); }).find(" is empty ("),
            std::string::npos);
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
    EXPECT_EQ(parse_json(written).value()["torch_dtype"], "bfloat16");
    EXPECT_EQ(parse_json(written).value()["embedding_multiplier_scale"],
              model.embedding_multiplier);
    EXPECT_EQ(parse_json(written).value()["tie_word_embeddings"], model.tie_embeddings);
    EXPECT_EQ(read(written).pad_id, model.pad_id);
    EXPECT_EQ(read(written).dense_ffn_dim, model.dense_ffn_dim);
    EXPECT_EQ(read(written).attention_temperature_len, model.attention_temperature_len);
  }
  EXPECT_THROW(write_hf_config(read(kGrok2), DType::i32), ContractError);
}

// What a server takes a config for that lacks a key, and would run another model with.
TEST(HfConfig, NothingIsLeftToWhatAServerAssumes) {
  struct Assumed {
    const char* server;
    const char* key;
    Json value;  // where the key is absent
  };
  // Source: their models grok1.py and grok.py.
  const std::vector<Assumed> rows = {{"vLLM", "num_experts", 8},
                                     {"vLLM", "num_experts_per_tok", 2},
                                     {"vLLM", "router_logit_softcapping", 30.0},
                                     {"vLLM", "attn_logit_softcapping", 30.0},
                                     {"vLLM", "attn_output_multiplier", 1.0},
                                     {"vLLM", "output_multiplier_scale", 0.5773502691896257},
                                     {"vLLM", "embedding_multiplier_scale", 78.38367176906169},
                                     {"SGLang", "head_dim", 128},
                                     {"SGLang", "rope_theta", 10000},
                                     {"SGLang", "moe_intermediate_size", 176},  // the dense width
                                     {"SGLang", "attn_logit_softcapping", 30.0},
                                     {"SGLang", "attn_temperature_len", -1},
                                     {"SGLang", "residual_moe", false},
                                     {"SGLang", "load_presharded_moe", true}};
  Json other = minimal();
  other["num_local_experts"] = 4;
  other["num_experts_per_tok"] = 3;
  other["moe_intermediate_size"] = 48;
  other["residual_moe"] = true;
  other["router_logit_softcapping"] = 25.0;
  other["attn_logit_softcapping"] = 20.0;
  other["head_dim"] = 16;
  other["rope_theta"] = 5e5;
  other["attn_temperature_len"] = 64;
  const Json written = parse_json(write_hf_config(read(other.dump()), DType::bf16)).value();
  for (const Assumed& row : rows) {
    ASSERT_TRUE(written.contains(row.key)) << row.server << " " << row.key;
    EXPECT_NE(written[row.key], row.value) << row.server << " " << row.key;
    if (other.contains(row.key)) {
      EXPECT_EQ(written[row.key], other[row.key]) << row.server << " " << row.key;
    }
  }
}

class Folder : public testing::Test {
 protected:
  void write_shard(const std::string& name, const std::vector<TensorSource>& tensors) {
    fs::remove(directory_.path() / name);
    write_safetensors(directory_.path() / name, tensors);
  }
  void write_index(const Json& weight_map) {
    directory_.write("model.safetensors.index.json", Json{{"weight_map", weight_map}}.dump());
  }
  std::string refusal() {
    const std::string text =
        error_text<CheckpointError>([&] { const HfTensors tensors(directory_.path()); });
    EXPECT_TRUE(follows_grammar(text)) << text;
    return text;
  }
  void expect_refusal(const std::string& part) {
    const std::string text = refusal();
    EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
  }
  // The file of each tensor.
  std::map<std::string, std::string> files() {
    const HfTensors tensors(directory_.path());
    std::map<std::string, std::string> result;
    for (const auto& [name, parts] : tensors.tensors()) {
      result[name] = parts.front().file->path().filename().string();
    }
    return result;
  }
  const TensorSource x_ = source<float>("x", {2, 2}, ramp(4));
  const TensorSource y_ = source<bf16>("y", {2}, {bf16(1.5F), bf16(-2.0F)});
  const TensorSource z_ = source<float>("z", {1}, {1.0F});
  TemporaryDirectory directory_;
};
using Files = std::map<std::string, std::string>;

TEST_F(Folder, ReadsShardsThroughTheIndex) {
  write_shard("a.safetensors", {x_});
  write_shard("b.safetensors", {y_});
  write_index({{"x", "a.safetensors"}, {"y", "b.safetensors"}});
  EXPECT_EQ(files(), (Files{{"x", "a.safetensors"}, {"y", "b.safetensors"}}));
  const HfTensors tensors(directory_.path());
  const HfTensors::Part& part = tensors.tensors().at("y").front();
  float values[2];
  part.file->read(part.name, part.tensor().shape, 0, 2, DType::f32, values);
  EXPECT_EQ(values[0], 1.5F);
}

TEST_F(Folder, PrefersTheSingleFile) {
  write_shard("model.safetensors", {x_});
  write_index({{"y", "gone.safetensors"}});
  EXPECT_EQ(files(), (Files{{"x", "model.safetensors"}}));
}

TEST_F(Folder, ReadsASeriesWithoutAnIndex) {
  write_shard("model-00001-of-00002.safetensors", {x_});
  expect_refusal("of the 2 files of its series 1 are missing: model-00002-of-00002.safetensors");
  write_shard("model-00002-of-00002.safetensors", {y_});
  EXPECT_EQ(files(),
            (Files{{"x", "model-00001-of-00002.safetensors"},
                   {"y", "model-00002-of-00002.safetensors"}}));
  write_shard("model-00002-of-00002.safetensors", {y_, x_});
  expect_refusal("tensor 'x' is in model-00001-of-00002.safetensors and, as 'x', in model-00002");
}

TEST_F(Folder, NamesWhatAnIndexAndItsFilesDoNotAgreeOn) {
  write_shard("a.safetensors", {x_});
  write_index({{"x", "b.safetensors"}, {"y", "c.safetensors"}, {"z", "a.safetensors"}});
  expect_refusal(
      "of its 3 files these are missing: b.safetensors, c.safetensors (in them are 2 "
      "tensors: x, y)");
  write_index({{"y", "a.safetensors"}, {"z", "a.safetensors"}});
  expect_refusal("not in 'a.safetensors' are 2 of its tensors: y, z (the index places them there)");
  write_index({{"x", "../a.safetensors"}});
  expect_refusal("tensor 'x' lies in '../a.safetensors' (a shard is named by a bare file name");
  write_index({{"x", "/etc/passwd"}});
  expect_refusal("tensor 'x' lies in '/etc/passwd'");
  write_index({{"x", 3}});
  expect_refusal("tensor 'x' lies in '3'");

  write_shard("a.safetensors", {x_, y_, z_});
  write_index({{"x", "a.safetensors"}});
  expect_refusal("'a.safetensors' holds 2 tensors that the index does not name: y, z");
  write_shard("a.safetensors", {x_});
  write_shard("b.safetensors", {x_, y_});
  write_index({{"x", "a.safetensors"}, {"y", "b.safetensors"}});
  expect_refusal("tensor 'x' is in 'a.safetensors' and in 'b.safetensors'");

  for (const char* text : {"{}", "{\"weight_map\": {}}", "{\"weight_map\": []}"}) {
    directory_.write("model.safetensors.index.json", text);
    expect_refusal("'weight_map' is missing, empty or not an object");
  }
  directory_.write("model.safetensors.index.json", "<html>");
  expect_refusal("model.safetensors.index.json is an HTML page");
}

// A file of the same series is a part of some model; one of another kind is somebody else's.
TEST_F(Folder, AShardThatTheIndexDoesNotNameIsRefused) {
  write_shard("model-00001-of-00001.safetensors", {x_});
  write_index({{"x", "model-00001-of-00001.safetensors"}});
  write_shard("optimizer.safetensors", {y_});
  EXPECT_EQ(files().size(), 1U);
  write_shard("model-00002-of-00002.safetensors", {y_});
  expect_refusal("there are others of their kind: model-00002-of-00002.safetensors");
}

TEST_F(Folder, SaysWhatIsThereInsteadOfSafetensors) {
  expect_refusal("has neither model.safetensors nor model.safetensors.index.json nor other");
  directory_.write("model.gguf", "GGUF");
  expect_refusal("it has model.gguf: llama.cpp's format); use the model that it was made from");
  directory_.write("ckpt-0/tensor00000_000", "x");
  expect_refusal("it has ckpt-0: a checkpoint of xai-org/grok-1");
  directory_.write("pytorch_model.bin", "x");
  expect_refusal(
      "it has pytorch_model.bin: pickles are not read, they can run code); convert them");
}

TEST(HfGolden, ReadsTheModelAndItsLogits) {
  for (const char* name : {"grok_tiny", "grok_tiny_nopad"}) {
    const test::GoldenModel golden(name);
    const fs::path& folder = golden.folder();
    const ModelConfig model = read_hf_config(folder / "config.json");
    EXPECT_EQ(model.d_model, 32);
    EXPECT_EQ(model.num_layers, 3);
    EXPECT_EQ(model.num_kv_heads, 2);
    EXPECT_EQ(model.output_multiplier, 0.5773502691896257);
    EXPECT_TRUE(model.tie_embeddings);
    EXPECT_EQ(model.pad_id, 0);

    const HfTensors tensors(folder);
    const auto read = [&](const std::string& tensor, const std::vector<std::int64_t>& shape) {
      const HfTensors::Part& part = tensors.tensors().at(tensor).front();
      std::vector<float> values(static_cast<std::size_t>(shape[0] * shape[1]));
      part.file->read(part.name, shape, 0, shape[0] * shape[1], DType::f32, values.data());
      return values;
    };
    EXPECT_EQ(read("model.embed_tokens.weight", {64, 32}), read("lm_head.weight", {64, 32}));
    for (const float value :
         read("model.layers.2.block_sparse_moe.experts.7.w2.weight", {32, 176})) {
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
