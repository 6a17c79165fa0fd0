// SPDX-License-Identifier: Apache-2.0
//
// Model folders as they should not be, one fault each, and what is said of it.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/tensor_names.h"
#include "csrc/checkpoint/weights.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "tests/checkpoint/source.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using test::error_text;
using test::follows_grammar;
using test::source;

constexpr const char* kFirst = "model-00001-of-00002.safetensors";
constexpr const char* kSecond = "model-00002-of-00002.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kQuery = "model.layers.0.self_attn.q_proj.weight";

ModelConfig tiny_model() {
  ModelConfig model;
  model.vocab_size = 16;
  model.num_layers = 1;
  model.d_model = 8;
  model.num_heads = 2;
  model.num_kv_heads = 1;
  model.head_dim = 4;
  model.ffn_dim = 12;
  model.num_experts = 2;
  model.embedding_multiplier = 2;
  model.attention_multiplier = 0.5;
  model.tie_embeddings = true;
  model.pad_id = -1;
  return model;
}

// A good folder, of two files with an index, that a fault is planted into.
class Folder {
 public:
  Folder() {
    write("config.json", write_hf_config(tiny_model(), DType::f32));
    std::vector<TensorSource> first;
    std::vector<TensorSource> second;
    Json map = Json::object();
    for (const NamedShape& planned : planned_weights(plan_parameters(tiny_model(), DType::f32))) {
      std::vector<TensorSource>& tensors = first.size() < 5 ? first : second;
      map[planned.name] = first.size() < 5 ? kFirst : kSecond;
      tensors.push_back(tensor(planned.name, planned.shape));
    }
    write_safetensors(path() / kFirst, first);
    write_safetensors(path() / kSecond, second);
    write(kIndex, Json{{"weight_map", map}}.dump());
  }

  const fs::path& path() const { return directory_.path(); }
  void write(const std::string& name, const std::string& text) const {
    fs::remove_all(path() / name);
    directory_.write(name, text);
  }
  std::string bytes(const std::string& name) const { return read_text(path() / name); }
  void remove(const std::string& name) const { fs::remove(path() / name); }

  static TensorSource tensor(const std::string& name,
                             const std::vector<std::int64_t>& shape,
                             float first = 1) {
    std::size_t count = 1;
    for (const std::int64_t dim : shape) {
      count *= static_cast<std::size_t>(dim);
    }
    return source<float>(name, shape, test::ramp(count, first));
  }

  void edit_json(const std::string& name, const std::function<void(Json&)>& edit) const {
    Json object = parse_json(bytes(name)).value();
    edit(object);
    write(name, object.dump());
  }
  // The header of the first file as `edit` leaves it, before the same data.
  void edit_header(const std::function<void(std::string&)>& edit) const {
    const std::string file = bytes(kFirst);
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof(length));
    std::string header = file.substr(sizeof(length), length);
    const std::string data = file.substr(sizeof(length) + header.size());
    edit(header);
    length = header.size();
    write(kFirst,
          std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data);
  }
  void add_tensor(const TensorSource& tensor) const {
    write_safetensors(path() / "more.safetensors", std::vector{tensor});
    edit_json(kIndex, [&](Json& index) { index["weight_map"][tensor.name] = "more.safetensors"; });
  }

 private:
  test::TemporaryDirectory directory_;
};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from << " in " << text;
  return text.replace(at, from.size(), to);
}

// What every command does that reads a model.
void read_model(const fs::path& folder) {
  const fs::path found = find_model_folder(folder);
  const ModelConfig model = read_hf_config(found / "config.json");
  const StoredWeights stored(found, model);
  const OwnedStream stream(Device::cpu);
  Parameters parameters(
      plan_parameters(model, DType::f32), DType::f32, Device::cpu, Parameters::Gradients::none);
  stored.load(parameters, stream.view());
}

struct Fault {
  std::string name;
  std::function<void(const Folder&)> plant;
  std::string message;  // a part of it
};

std::function<void(const Folder&)> config(const std::function<void(Json&)>& edit) {
  return [edit](const Folder& folder) { folder.edit_json("config.json", edit); };
}
std::function<void(const Folder&)> without(const char* key) {
  return config([key](Json& json) { json.erase(key); });
}
template <class T>
std::function<void(const Folder&)> with(const char* key, const T& value) {
  return config([key, value](Json& json) { json[key] = value; });
}
std::function<void(const Folder&)> index(const std::function<void(Json&)>& edit) {
  return [edit](const Folder& folder) { folder.edit_json(kIndex, edit); };
}
std::function<void(const Folder&)> header(const std::string& from, const std::string& to) {
  return [from, to](const Folder& folder) {
    folder.edit_header([&](std::string& text) { text = replaced(text, from, to); });
  };
}
std::function<void(const Folder&)> file(const char* name, const std::string& text) {
  return [name, text](const Folder& folder) { folder.write(name, text); };
}

std::vector<Fault> faults() {
  const std::string q_header =
      "\"model.layers.0.self_attn.q_proj.weight\":{\"dtype\":\"F32\",\"shape\":[8,8]";
  return {
      // config.json
      {"no_config",
       [](const Folder& f) { f.remove("config.json"); },
       "holds no model (it has no config.json"},
      {"config_empty", file("config.json", ""), "config.json is empty (it has 0 bytes"},
      {"config_no_json",
       file("config.json", "{\"vocab_size\": 16,"),
       "config.json: no valid JSON near byte 19"},
      {"config_list", file("config.json", "[1]"), "config.json"},
      {"config_key_twice",
       file("config.json", R"({"vocab_size": 1, "vocab_size": 2})"),
       "vocab_size"},
      {"config_page",
       file("config.json", "<!doctype html><title>404</title>"),
       "config.json is an HTML page"},
      {"config_is_folder",
       [](const Folder& f) {
         f.remove("config.json");
         fs::create_directory(f.path() / "config.json");
       },
       "config.json (it is a"},
      {"no_vocab_size", without("vocab_size"), "vocab_size is missing"},
      {"no_layers", without("num_hidden_layers"), "num_hidden_layers is missing"},
      {"no_hidden_size", without("hidden_size"), "hidden_size is missing"},
      {"no_heads", without("num_attention_heads"), "num_attention_heads is missing"},
      {"no_experts",
       config([](Json& json) {
         json.erase("num_local_experts");
         json.erase("num_experts");
       }),
       "num_local_experts is missing"},
      {"no_experts_per_token", without("num_experts_per_tok"), "num_experts_per_tok is missing"},
      {"no_embedding_multiplier",
       without("embedding_multiplier_scale"),
       "embedding_multiplier_scale is missing"},
      {"no_output_multiplier",
       without("output_multiplier_scale"),
       "output_multiplier_scale is missing"},
      {"vocab_text", with("vocab_size", "16"), "vocab_size is \"16\" (it is a whole number"},
      {"vocab_fraction", with("vocab_size", 16.5), "vocab_size is 16.5 (it is a whole number"},
      {"vocab_negative", with("vocab_size", -16), "vocab_size is -16 (it is a whole number"},
      {"vocab_huge", with("vocab_size", 1e30), "vocab_size is 1e+30 (it is a whole number"},
      {"kv_heads",
       with("num_key_value_heads", 3),
       "num_key_value_heads is 3 and num_attention_heads 2"},
      {"experts_per_token",
       with("num_experts_per_tok", 3),
       "num_experts_per_tok is 3 (there are 2 experts)"},
      {"head_dim_odd", with("head_dim", 3), "head_dim is 3 (rotary embeddings"},
      {"two_numbers_of_experts",
       with("num_experts", 4),
       "is 4 and num_local_experts is 2 (they are two names of one value)"},
      {"two_caps", with("max_attn_value", 20.0), "(they are two names of one value)"},
      {"two_thetas",
       with("rope_parameters", Json{{"rope_theta", 5e5}}),
       "rope_parameters.rope_theta is 500000.0 and rope_theta is 10000"},
      {"pad_outside", with("pad_token_id", 16), "pad_token_id is 16 (vocab_size is 16)"},
      {"another_architecture",
       with("architectures", Json{"LlamaForCausalLM"}),
       "architectures is [\"LlamaForCausalLM\"] (known: "},
      {"another_activation",
       with("hidden_act", "silu"),
       "hidden_act is \"silu\" (experts use the tanh form"},
      {"rescaled_rotations", with("rope_scaling", Json{{"type", "yarn"}}), "rope_scaling is"},
      {"sliding_window", with("sliding_window", 512), "sliding_window is 512 (attention sees all"},
      {"shared_experts",
       with("n_shared_experts", 1),
       "n_shared_experts is 1 (Grok has nothing of the kind)"},
      {"quantised_config",
       with("quantization_config", Json{{"quant_method", "fp8"}}),
       "quantised weights are not read"},
      {"tied_as_text",
       with("tie_word_embeddings", "yes"),
       "tie_word_embeddings is \"yes\" (it is true or false)"},
      // which files there are
      {"no_weights",
       [](const Folder& f) {
         for (const char* name : {kFirst, kSecond, kIndex}) {
           f.remove(name);
         }
       },
       "has neither model.safetensors nor"},
      {"pickles",
       [](const Folder& f) {
         for (const char* name : {kFirst, kSecond, kIndex}) {
           f.remove(name);
         }
         f.write("pytorch_model.bin", "x");
       },
       "it has pytorch_model.bin: pickles are not read"},
      {"missing_shard",
       [](const Folder& f) { f.remove(kSecond); },
       "of its 2 files one is missing: model-00002-of-00002.safetensors"},
      {"missing_shard_of_series",
       [](const Folder& f) {
         f.remove(kIndex);
         f.remove(kSecond);
       },
       "of the 2 files of its series 1 are missing: model-00002-of-00002.safetensors"},
      {"shard_too_many",
       [](const Folder& f) {
         fs::copy(f.path() / kFirst, f.path() / "model-00003-of-00003.safetensors");
       },
       "beside its files there are others of their kind: model-00003-of-00003.safetensors"},
      {"shard_link_to_nothing",
       [](const Folder& f) {
         f.remove(kSecond);
         fs::create_symlink("../../blobs/abc", f.path() / kSecond);
       },
       "is a link to ../../blobs/abc (which is not there"},
      {"shard_is_folder",
       [](const Folder& f) {
         f.remove(kSecond);
         fs::create_directory(f.path() / kSecond);
       },
       "(it is"},
      {"shard_is_pipe",
       [](const Folder& f) {
         f.remove(kSecond);
         ASSERT_EQ(::mkfifo((f.path() / kSecond).c_str(), 0600), 0);
       },
       "it is not a regular file"},
      {"missing_rank",
       [](const Folder& f) {
         for (const char* name : {kFirst, kSecond, kIndex}) {
           f.remove(name);
         }
         for (const char* name :
              {"m-TP-common.safetensors", "n-TP-000.safetensors", "n-TP-002.safetensors"}) {
           write_safetensors(f.path() / name, std::vector{Folder::tensor("a", {1})});
         }
       },
       "1 of its files are missing: n-TP-001.safetensors (its tensors are cut into 3 parts each)"},
      // the index
      {"index_no_json",
       file(kIndex, "{"),
       "model.safetensors.index.json: no valid JSON near byte 2"},
      {"index_no_map",
       file(kIndex, R"({"metadata": {}})"),
       "'weight_map' is missing, empty or not an object"},
      {"index_outside",
       index([](Json& json) { json["weight_map"][kQuery] = "../x.safetensors"; }),
       "lies in '../x.safetensors' (a shard is named by a bare file name"},
      {"index_number", index([](Json& json) { json["weight_map"][kQuery] = 1; }), "lies in '1'"},
      {"index_other_file",
       index([](Json& json) { json["weight_map"][kQuery] = kSecond; }),
       "is in 'model-00002-of-00002.safetensors' and in 'model-00001-of-00002.safetensors'"},
      {"index_too_few",
       index([](Json& json) { json["weight_map"].erase(kQuery); }),
       "holds 1 tensors that the index does not name"},
      {"index_too_many",
       index([](Json& json) { json["weight_map"]["ghost"] = kFirst; }),
       "not in 'model-00001-of-00002.safetensors' are 1 of its tensors: ghost"},
      {"tensor_twice",
       [](const Folder& f) {
         f.remove(kIndex);
         f.remove(kFirst);
         f.remove(kSecond);
         write_safetensors(f.path() / "a.safetensors", std::vector{Folder::tensor(kQuery, {8, 8})});
         write_safetensors(
             f.path() / "b.safetensors",
             std::vector{Folder::tensor("model.layers.0.attn.q_proj.weight", {8, 8})});
       },
       "is in a.safetensors and, as 'model.layers.0.attn.q_proj.weight', in b.safetensors"},
      // one file
      {"file_empty", file(kSecond, ""), "is empty (it has 0 bytes"},
      {"file_pointer",
       file(kSecond, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 22\n"),
       "is a Git LFS pointer to 22 bytes"},
      {"file_truncated",
       [](const Folder& f) {
         fs::resize_file(f.path() / kFirst, fs::file_size(f.path() / kFirst) - 9);
       },
       "it is truncated"},
      {"file_longer",
       [](const Folder& f) { std::ofstream(f.path() / kFirst, std::ios::app) << "more"; },
       "4 bytes follow the last tensor"},
      {"header_too_long",
       [](const Folder& f) { f.write(kFirst, std::string("\x00\xe1\xf5\x06\x01\0\0\0{", 9)); },
       "its header is said to have 4411744512 bytes (the format's limit is 100000000)"},
      {"header_behind_end",
       [](const Folder& f) { f.write(kFirst, std::string("\xff\xff\0\0\0\0\0\0{}", 10)); },
       "its header is said to have 65535 bytes, the file has 10"},
      {"header_no_json",
       header("{\"__metadata__\"", "{__metadata__\""),
       "model-00001-of-00002.safetensors: no valid JSON"},
      {"header_name_twice",
       header("\"model.embed_tokens.weight\"", "\"model.layers.0.self_attn.q_proj.weight\""),
       "model.layers.0.self_attn.q_proj.weight"},
      {"header_no_such_type",
       header("\"dtype\":\"F32\"", "\"dtype\":\"F33\""),
       "has dtype \"F33\" (the format has no such type)"},
      {"header_type_of_other_size",
       header(q_header, replaced(q_header, "F32", "F64")),
       "(F64 of shape [8,8] takes 512)"},
      {"header_shape_overflows",
       header(q_header, replaced(q_header, "[8,8]", "[4294967296,4294967296,4294967296]")),
       "its size overflows 64 bits"},
      {"header_dim_negative",
       header(q_header, replaced(q_header, "[8,8]", "[-8,8]")),
       "has a dim of -8"},
      {"header_unknown_field",
       header("\"dtype\":\"F32\"", "\"kind\":3,\"dtype\":\"F32\""),
       "has the unknown field 'kind'"},
      // the tensors
      {"missing_and_extra",
       [](const Folder& f) {
         f.edit_json("config.json", [](Json& json) { json["num_hidden_layers"] = 2; });
         f.add_tensor(Folder::tensor("model.layers.7.mlp.up_proj.weight", {2, 2}));
       },
       "holds 1 tensor that the config has no place for: model.layers.7.mlp.up_proj.weight; it "
       "lacks 15 tensors that the config asks for: model.layers.1.pre_attn_norm.weight"},
      {"another_shape",
       header(q_header, replaced(q_header, "[8,8]", "[4,16]")),
       "model.layers.0.self_attn.q_proj.weight has shape [4, 16], not [8, 8]"},
      {"integers",
       header(q_header, replaced(q_header, "F32", "I32")),
       "holds 1 tensor of type I32: model.layers.0.self_attn.q_proj.weight"},
      {"head_differs",
       [](const Folder& f) {
         f.add_tensor(Folder::tensor("lm_head.weight", {16, 8}, 7));
       },
       "lm_head.weight differs from model.embed_tokens.weight"},
      {"not_finite",
       [](const Folder& f) {
         std::string file = f.bytes(kSecond);
         const float nan = std::nanf("");
         std::memcpy(file.data() + file.size() - sizeof(nan), &nan, sizeof(nan));
         f.write(kSecond, file);
       },
       "1 tensor with values that are not finite"},
  };
}

TEST(BadModel, IsRefusedWithWhatIsWrongWithIt) {
  {
    const Folder good;
    EXPECT_NO_THROW(read_model(good.path()));
  }
  std::size_t count = 0;
  for (const Fault& fault : faults()) {
    SCOPED_TRACE(fault.name);
    const Folder folder;
    fault.plant(folder);
    const std::string text = error_text<CheckpointError>([&] { read_model(folder.path()); });
    EXPECT_TRUE(follows_grammar(text)) << text;
    EXPECT_NE(text.find(fault.message), std::string::npos) << text << "\nlacks: " << fault.message;
    EXPECT_NE(text.find(folder.path().string()), std::string::npos) << text << " names no place";
    ++count;
  }
  EXPECT_GE(count, 60U);
}

}  // namespace
}  // namespace memphis
