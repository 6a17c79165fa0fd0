// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <set>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/json.h"
#include "csrc/config/ranges.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// Larger than any size of a model, small enough that products of two fit 64 bits.
constexpr std::int64_t kMaxSize = std::int64_t{1} << 31U;
constexpr double kLargestF32 = std::numeric_limits<float>::max();

class HfConfig {
 public:
  explicit HfConfig(const fs::path& path) : path_(path), root_(read_json_object(path)) {}

  [[noreturn]] void fail(std::string_view key,
                         std::string_view problem,
                         std::string_view why,
                         std::string_view advice) const {
    throw CheckpointError(
        fmt::format("{}: {} {} ({}); {}", path_.string(), key, problem, why, advice));
  }

  // Null is how transformers spells absence.
  const Json* find(const char* key) const {
    const auto found = root_.find(key);
    return found == root_.end() || found->is_null() ? nullptr : &*found;
  }

  // The first of several spellings of a key that is there.
  const char* spelling(std::initializer_list<const char*> keys) const {
    const char* result = nullptr;
    for (const char* key : keys) {
      const Json* value = find(key);
      if (value == nullptr) {
        continue;
      }
      if (result != nullptr && *find(result) != *value) {
        fail(key,
             fmt::format("is {} and {} is {}", value->dump(), result, find(result)->dump()),
             "they are two names of one value",
             "remove the one that does not belong to the weights");
      }
      result = result == nullptr ? key : result;
    }
    return result != nullptr ? result : *keys.begin();
  }

  std::int64_t size(const char* key) const { return integer(key, require_key(key), 1); }
  std::int64_t size(const char* key, std::int64_t absent) const {
    const Json* value = find(key);
    return value == nullptr ? absent : integer(key, *value, 1);
  }
  // For keys where -1, like 0, means that there is none.
  std::int64_t optional_size(const char* key) const {
    const Json* value = find(key);
    return value == nullptr ? 0 : std::max<std::int64_t>(integer(key, *value, -1), 0);
  }
  std::int64_t integer(const char* key, const Json& value, std::int64_t least) const {
    const bool is_small_integer = value.is_number_unsigned()
                                      ? value.get<std::uint64_t>() <= kMaxSize
                                      : value.is_number_integer();
    if (!is_small_integer || value.get<std::int64_t>() < least) {
      fail(key,
           "is " + value.dump(),
           fmt::format("it is a whole number from {} to 2^31", least),
           "correct the file");
    }
    return value.get<std::int64_t>();
  }

  double number(const char* key) const { return number(key, require_key(key)); }
  double number(const char* key, double absent) const {
    const Json* value = find(key);
    return value == nullptr ? absent : number(key, *value);
  }
  // What kernels have in f32 has a place in its normal range: a run's own numbers have a smaller
  // one.
  double within(const char* key, double value, double low, double high) const {
    if (value < low || value > high) {
      fail(key,
           fmt::format("is {}", value),
           fmt::format("it is {:.7g} to {:.7g}, as kernels compute it in f32", low, high),
           "correct the file");
    }
    return value;
  }
  double factor(const char* key) const { return within(key, number(key), kMinFactor, kLargestF32); }
  double factor(const char* key, double absent) const {
    return within(key, positive(key, absent), kMinFactor, kLargestF32);
  }
  // 0: none.
  double cap(const char* key, double absent) const {
    const double value = number(key, absent);
    return value == 0 ? 0 : within(key, value, kMinFactor, kLargestF32);
  }
  double positive(const char* key, double absent) const {
    const double value = number(key, absent);
    if (value <= 0) {
      fail(key, fmt::format("is {}", value), "it is a positive number", "correct the file");
    }
    return value;
  }

  bool flag(const char* key) const {
    const Json* value = find(key);
    if (value != nullptr && !value->is_boolean()) {
      fail(key, "is " + value->dump(), "it is true or false", "correct the file");
    }
    return value != nullptr && value->get<bool>();
  }

  // A key that may be absent, or one of these texts.
  void expect_text(const char* key,
                   const std::set<std::string>& known,
                   std::string_view why) const {
    const Json* value = find(key);
    if (value != nullptr && !(value->is_string() && known.contains(value->get<std::string>()))) {
      fail_unsupported(key, *value, fmt::format("{}: {}", why, fmt::join(known, ", ")));
    }
  }

  [[noreturn]] void fail_unsupported(const char* key,
                                     const Json& value,
                                     std::string_view why) const {
    fail(key, "is " + value.dump(), why, "memphis cannot compute this model, use another");
  }

 private:
  const Json& require_key(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr) {
      fail(key,
           "is missing",
           "the model is not defined without it",
           "use the config.json that belongs to the weights");
    }
    return *value;
  }

  double number(const char* key, const Json& value) const {
    if (!value.is_number() || value.get<double>() < 0) {
      fail(key, "is " + value.dump(), "it is a number, not negative", "correct the file");
    }
    return value.get<double>();
  }

  const fs::path& path_;
  Json root_;
};

// What other models of the family of formats do and Grok does not, by the keys that ask for it.
constexpr std::array kFlagsThatAreOff{"add_cross_attention",
                                      "alibi",
                                      "attention_bias",
                                      "is_encoder_decoder",
                                      "mlp_bias",
                                      "moe_renormalize",
                                      "moe_router_renormalize",
                                      "norm_topk_prob",
                                      "parallel_attn",
                                      "qk_layernorm",
                                      "qk_norm",
                                      "qkv_bias",
                                      "rope_interleave",
                                      "use_bias",
                                      "use_qk_norm",
                                      "use_parallel_residual",
                                      "use_sliding_window",
                                      "rope_rotate_half_dims"};
constexpr std::array kFactorsThatAreOne{"decoder_sparse_step",
                                        "logit_scale",
                                        "logits_scaling",
                                        "moe_layer_freq",
                                        "partial_rotary_factor",
                                        "residual_multiplier",
                                        "rotary_pct",
                                        "routed_scaling_factor"};
constexpr std::array kSizesThatAreNone{"first_k_dense_replace",
                                       "n_shared_experts",
                                       "num_shared_experts",
                                       "shared_expert_intermediate_size"};
constexpr std::array kWeightsInAnotherForm{
    "compression_config", "quantization", "quantization_config"};

void refuse_other_arithmetic(const HfConfig& config) {
  if (const Json* names = config.find("architectures")) {
    static const std::set<std::string> kKnown{
        "Grok1ForCausalLM", "Grok1ModelForCausalLM", "GrokForCausalLM"};
    if (!names->is_array() || names->size() != 1 || !names->front().is_string() ||
        !kKnown.contains(names->front().get<std::string>())) {
      config.fail_unsupported(
          "architectures", *names, fmt::format("known: {}", fmt::join(kKnown, ", ")));
    }
  }
  // "gelu" means the erf form in transformers and either in the servers of these models: refused.
  for (const char* key :
       {"hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"}) {
    config.expect_text(
        key, {"gelu_tanh", "gelu_new", "gelu_pytorch_tanh"}, "experts use the tanh form of GELU");
  }
  config.expect_text("rope_type", {"original", "default"}, "rotations are not rescaled");
  config.expect_text("scoring_func", {"softmax"}, "the router's scores are a softmax");
  for (const char* key : {"sliding_window_size", "sliding_window"}) {
    if (config.optional_size(key) > 0) {
      config.fail_unsupported(key, *config.find(key), "attention sees all earlier positions");
    }
  }
  if (const Json* types = config.find("layer_types")) {
    for (const Json& type : *types) {
      if (type != "full_attention") {
        config.fail_unsupported("layer_types", *types, "attention sees all earlier positions");
      }
    }
  }
  if (const Json* value = config.find("rope_scaling")) {
    config.fail_unsupported("rope_scaling", *value, "rotations are not rescaled");
  }
  for (const char* key : kWeightsInAnotherForm) {
    if (const Json* value = config.find(key)) {
      config.fail(
          key,
          "is " + value->dump(),
          "quantised weights are not read: a value means nothing without scales that differ "
          "from program to program",
          "use the model that was not quantised, or convert it to BF16");
    }
  }
  constexpr std::string_view kNothingOfTheKind = "Grok has nothing of the kind";
  for (const char* key : kFlagsThatAreOff) {
    if (config.flag(key)) {
      config.fail_unsupported(key, *config.find(key), kNothingOfTheKind);
    }
  }
  for (const char* key : kFactorsThatAreOne) {
    if (config.number(key, 1.0) != 1.0) {
      config.fail_unsupported(key, *config.find(key), kNothingOfTheKind);
    }
  }
  for (const char* key : kSizesThatAreNone) {
    if (config.optional_size(key) > 0) {
      config.fail_unsupported(key, *config.find(key), kNothingOfTheKind);
    }
  }
  if (const Json* layers = config.find("mlp_only_layers"); layers != nullptr && !layers->empty()) {
    config.fail_unsupported("mlp_only_layers", *layers, "every layer has experts");
  }
}

// transformers 5 keeps what it knows of rotations in `rope_parameters`.
double read_rope_theta(const HfConfig& config) {
  constexpr double kAbsent = 10000.0;
  constexpr const char* kKey = "rope_parameters";
  const Json* parameters = config.find(kKey);
  if (parameters == nullptr) {
    return config.positive("rope_theta", kAbsent);
  }
  constexpr std::string_view kNotRescaled = "rotations are not rescaled";
  if (!parameters->is_object()) {
    config.fail(kKey, "is " + parameters->dump(), "it is an object", "correct the file");
  }
  const auto type =
      parameters->contains("rope_type") ? parameters->find("rope_type") : parameters->find("type");
  const bool is_original = type != parameters->end() && *type == "original";
  if (type != parameters->end() && !is_original && *type != "default") {
    config.fail_unsupported(
        "rope_parameters.rope_type", *type, fmt::format("{}: default, original", kNotRescaled));
  }
  double theta = config.positive("rope_theta", kAbsent);
  for (const auto& [key, value] : parameters->items()) {
    const std::string name = fmt::format("{}.{}", kKey, printable(key));
    if (key == "rope_type" || key == "type" || value.is_null() ||
        key == "original_max_position_embeddings") {
      continue;
    }
    if (key == "rope_theta") {
      if (!value.is_number() || !(value.get<double>() > 0)) {
        config.fail(name, "is " + value.dump(), "it is a positive number", "correct the file");
      }
      if (config.find("rope_theta") != nullptr && theta != value.get<double>()) {
        config.fail(name,
                    fmt::format("is {} and rope_theta is {}", value.dump(), theta),
                    "they are two names of one value",
                    "remove the one that does not belong to the weights");
      }
      theta = value.get<double>();
    } else if (key == "partial_rotary_factor") {
      if (value != 1.0) {
        config.fail_unsupported(name.c_str(), value, "all of a head is rotated");
      }
    } else if (!is_original) {  // which leaves the keys of its rescaling unused
      config.fail_unsupported(name.c_str(), value, kNotRescaled);
    }
  }
  return theta;
}

}  // namespace

ModelConfig read_hf_config(const fs::path& path) {
  const HfConfig config(path);
  refuse_other_arithmetic(config);
  ModelConfig model;
  model.vocab_size = config.size("vocab_size");
  model.num_layers = config.size("num_hidden_layers");
  model.d_model = config.size("hidden_size");
  model.num_heads = config.size("num_attention_heads");
  model.num_kv_heads = config.size("num_key_value_heads", model.num_heads);
  if (model.num_heads % model.num_kv_heads != 0) {
    config.fail(
        "num_key_value_heads",
        fmt::format("is {} and num_attention_heads {}", model.num_kv_heads, model.num_heads),
        "each key head serves the same number of query heads",
        "correct the file");
  }
  if (config.find("head_dim") == nullptr && model.d_model % model.num_heads != 0) {
    config.fail("head_dim",
                "is missing",
                fmt::format("hidden_size {} is not a multiple of num_attention_heads {}",
                            model.d_model,
                            model.num_heads),
                "add it");
  }
  model.head_dim = config.size("head_dim", model.d_model / model.num_heads);
  if (model.head_dim % 2 != 0) {
    config.fail("head_dim",
                fmt::format("is {}", model.head_dim),
                "rotary embeddings turn pairs of its elements",
                "correct the file");
  }
  if (config.flag("residual_moe")) {
    model.ffn_dim = config.size("moe_intermediate_size");
    model.dense_ffn_dim = config.size("intermediate_size");
  } else {
    const bool has_own_key = config.find("moe_intermediate_size") != nullptr;
    model.ffn_dim = config.size(has_own_key ? "moe_intermediate_size" : "intermediate_size");
  }
  model.num_experts = config.size(config.spelling({"num_local_experts", "num_experts"}));
  model.experts_per_token = config.size("num_experts_per_tok");
  if (model.experts_per_token > model.num_experts) {
    config.fail("num_experts_per_tok",
                fmt::format("is {}", model.experts_per_token),
                fmt::format("there are {} experts", model.num_experts),
                "correct the file");
  }
  // Required: a default would run the weights at another scale, which no shape betrays.
  model.embedding_multiplier = config.factor("embedding_multiplier_scale");
  model.output_multiplier = config.factor("output_multiplier_scale");
  model.attention_multiplier =
      config.factor("attn_output_multiplier", 1.0 / std::sqrt(static_cast<double>(model.head_dim)));
  model.attention_cap =
      config.cap(config.spelling({"attn_logit_softcapping", "max_attn_value"}), 30.0);
  model.router_cap = config.cap("router_logit_softcapping", 0.0);
  model.final_cap = config.cap("final_logit_softcapping", 0.0);
  model.attention_temperature_len = config.optional_size("attn_temperature_len");
  if (model.attention_temperature_len == 1) {
    config.fail("attn_temperature_len",
                "is 1",
                "the temperature divides by its logarithm",
                "correct the file, where -1 is for none");
  }
  model.rope_theta = config.within("rope_theta", read_rope_theta(config), kMinTheta, kMaxTheta);
  model.tie_embeddings = config.flag("tie_word_embeddings");
  model.norm_eps = config.within(
      "rms_norm_eps", config.positive("rms_norm_eps", 1e-5), kMinEpsilon, kMaxEpsilon);
  const Json* pad_id = config.find("pad_token_id");
  model.pad_id = pad_id == nullptr ? -1 : config.integer("pad_token_id", *pad_id, -1);
  if (model.pad_id >= model.vocab_size) {
    config.fail("pad_token_id",
                fmt::format("is {}", model.pad_id),
                fmt::format("vocab_size is {}", model.vocab_size),
                "correct the file");
  }
  model.max_sequence_length = config.size("max_position_embeddings", 0);
  return model;
}

std::string write_hf_config(const ModelConfig& model,
                            DType dtype,
                            std::string_view tokenizer_class) {
  require(dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16,
          "weights are exported as f64, f32 or bf16");
  const bool residual_moe = model.dense_ffn_dim > 0;
  nlohmann::ordered_json root;
  root["architectures"] = {residual_moe ? "Grok1ForCausalLM" : "Grok1ModelForCausalLM"};
  // An existing class of transformers, so that its config loader accepts the file; the two are
  // those that the published folders of either model name.
  root["model_type"] = residual_moe ? "git" : "mixtral";
  root["vocab_size"] = model.vocab_size;
  root["hidden_size"] = model.d_model;
  root["intermediate_size"] = residual_moe ? model.dense_ffn_dim : model.ffn_dim;
  // Beside residual_moe, what makes vLLM choose the names of tensors that are written here.
  root["moe_intermediate_size"] = model.ffn_dim;
  root["residual_moe"] = residual_moe;
  root["num_hidden_layers"] = model.num_layers;
  root["num_attention_heads"] = model.num_heads;
  root["num_key_value_heads"] = model.num_kv_heads;
  root["head_dim"] = model.head_dim;
  root["num_local_experts"] = model.num_experts;
  root["num_experts"] = model.num_experts;  // as vLLM reads it, and takes 8 where it is not there
  root["num_experts_per_tok"] = model.experts_per_token;
  if (model.max_sequence_length > 0) {
    root["max_position_embeddings"] = model.max_sequence_length;
  }
  root["rms_norm_eps"] = model.norm_eps;
  root["rope_theta"] = model.rope_theta;
  root["attn_output_multiplier"] = model.attention_multiplier;
  root["embedding_multiplier_scale"] = model.embedding_multiplier;
  root["output_multiplier_scale"] = model.output_multiplier;
  root["attn_logit_softcapping"] = model.attention_cap;
  root["router_logit_softcapping"] = model.router_cap;
  root["final_logit_softcapping"] = model.final_cap;
  // Off is spelled as in the released configs' sliding_window_size; zero is no base of a logarithm.
  root["attn_temperature_len"] =
      model.attention_temperature_len > 0 ? model.attention_temperature_len : -1;
  root["hidden_act"] = "gelu_tanh";
  root["pad_token_id"] =
      model.pad_id >= 0 ? nlohmann::ordered_json(model.pad_id) : nlohmann::ordered_json(nullptr);
  root["tie_word_embeddings"] = model.tie_embeddings;
  // SGLang takes experts for cut into one file a rank unless told otherwise.
  root["load_presharded_moe"] = false;
  root["torch_dtype"] = dtype == DType::bf16  ? "bfloat16"
                        : dtype == DType::f64 ? "float64"
                                              : "float32";
  if (!tokenizer_class.empty()) {
    root["tokenizer_class"] = tokenizer_class;
  }
  return root.dump(1) + "\n";
}

}  // namespace memphis
