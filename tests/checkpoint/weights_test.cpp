// SPDX-License-Identifier: Apache-2.0
//
// Model folders as other programs leave them: whatever the names, the files and the types, the same
// weights arrive, or an error names all that is amiss.
#include "csrc/checkpoint/weights.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/checkpoint/hf_names.h"
#include "csrc/checkpoint/tensor_names.h"
#include "csrc/core/error.h"
#include "tests/checkpoint/source.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using test::error_text;
using test::follows_grammar;
using test::source;
using test::TemporaryDirectory;

ModelConfig tiny_model() {
  ModelConfig model;
  model.vocab_size = 16;
  model.num_layers = 2;
  model.d_model = 8;
  model.num_heads = 2;
  model.num_kv_heads = 1;
  model.head_dim = 4;
  model.ffn_dim = 12;
  model.dense_ffn_dim = 6;
  model.num_experts = 3;
  model.experts_per_token = 2;
  model.tie_embeddings = false;
  return model;
}

struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};
using Tensors = std::map<std::string, Tensor>;

// Values that differ from those around them, exact in bf16.
Tensors tensors_of(const ModelConfig& model) {
  Tensors tensors;
  float next = 1;
  for (const NamedShape& planned : planned_weights(plan_parameters(model, DType::f32))) {
    Tensor& tensor = tensors[planned.name];
    tensor.shape = planned.shape;
    std::int64_t count = 1;
    for (const std::int64_t dim : planned.shape) {
      count *= dim;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      tensor.values.push_back(next);
      next += 1;
      if (next > 127) {
        next = next == std::floor(next) ? -127.5F : -127.0F;
      }
    }
  }
  return tensors;
}

template <class T = float>
std::vector<TensorSource> sources_of(const Tensors& tensors) {
  std::vector<TensorSource> sources;
  for (const auto& [name, tensor] : tensors) {
    std::vector<T> values;
    for (const float value : tensor.values) {
      values.push_back(T(value));
    }
    sources.push_back(source<T>(name, tensor.shape, values, 4096));
  }
  return sources;
}

// Part `index` of `count`, along `dim` of a matrix.
Tensor part_of(const Tensor& whole, int dim, std::int64_t index, std::int64_t count) {
  Tensor part{.shape = whole.shape, .values = {}};
  part.shape[static_cast<std::size_t>(dim)] /= count;
  for (std::int64_t row = 0; row < part.shape[0]; ++row) {
    for (std::int64_t column = 0; column < part.shape[1]; ++column) {
      const std::int64_t from_row = row + (dim == 0 ? index * part.shape[0] : 0);
      const std::int64_t from_column = column + (dim == 1 ? index * part.shape[1] : 0);
      part.values.push_back(
          whole.values[static_cast<std::size_t>(from_row * whole.shape[1] + from_column)]);
    }
  }
  return part;
}

class Weights : public testing::Test {
 protected:
  void write(const std::string& name, const Tensors& tensors) {
    fs::remove(directory_.path() / name);
    write_safetensors(directory_.path() / name, sources_of(tensors));
  }
  // What a model reads of the folder, by name, as f32.
  static Tensors read(const fs::path& folder,
                      const ModelConfig& model,
                      DType compute = DType::f32) {
    const OwnedStream stream(Device::cpu);
    Parameters parameters(
        plan_parameters(model, compute), compute, Device::cpu, Parameters::Gradients::none);
    StoredWeights(folder, model).load(parameters, stream.view());
    Tensors tensors;
    for (const LogicalParameter& parameter : parameters.plan().logical) {
      const TensorView view = parameters.logical_weights(parameter);
      Tensor& tensor = tensors[parameter.name];
      tensor.shape.assign(view.dims.begin(), view.dims.begin() + view.num_dims);
      for (std::int64_t i = 0; i < view.num_elements(); ++i) {
        tensor.values.push_back(view.dtype == DType::bf16
                                    ? static_cast<float>(static_cast<const bf16*>(view.data)[i])
                                    : static_cast<const float*>(view.data)[i]);
      }
    }
    return tensors;
  }
  void expect_weights(const ModelConfig& model, const Tensors& expected) {
    const Tensors found = read(directory_.path(), model);
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [name, tensor] : expected) {
      EXPECT_EQ(found.at(name).shape, tensor.shape) << name;
      EXPECT_EQ(found.at(name).values, tensor.values) << name;
    }
  }
  std::string refusal(const ModelConfig& model) {
    const std::string text =
        error_text<CheckpointError>([&] { const StoredWeights weights(directory_.path(), model); });
    EXPECT_TRUE(follows_grammar(text)) << text;
    return text;
  }
  std::string load_refusal(const ModelConfig& model) {
    const std::string text = error_text<CheckpointError>([&] { read(directory_.path(), model); });
    EXPECT_TRUE(follows_grammar(text)) << text;
    return text;
  }

  TemporaryDirectory directory_;
};

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST_F(Weights, NamesOfHpcaiAreRead) {
  ModelConfig model = tiny_model();
  model.dense_ffn_dim = 0;
  const Tensors tensors = tensors_of(model);
  Tensors renamed;
  for (const auto& [name, tensor] : tensors) {
    std::string other = name;
    for (const auto& [from, to] : {std::pair(".self_attn.", ".attn."),
                                   std::pair(".block_sparse_moe.", ".moe_block."),
                                   std::pair(".w1.", ".linear."),
                                   std::pair(".w3.", ".linear_v."),
                                   std::pair(".w2.", ".linear_1."),
                                   std::pair("norm.weight", "norm.scale")}) {
      other = replaced(other, from, to);
    }
    EXPECT_EQ(form_b_name(other), name);
    renamed[other] = tensor;
  }
  write("model.safetensors", renamed);
  expect_weights(model, tensors);
}

TEST_F(Weights, NamesOfTheJaxCheckpointAreRead) {
  ModelConfig model = tiny_model();
  model.dense_ffn_dim = 0;
  model.tie_embeddings = true;
  const Tensors tensors = tensors_of(model);
  Tensors renamed;
  for (const auto& [name, tensor] : tensors) {
    std::string other = name;
    for (const auto& [from, to] : {std::pair("model.layers.", "transformer.decoder_layer."),
                                   std::pair("model.embed_tokens.", "transformer.in_out_embed."),
                                   std::pair("model.norm.", "transformer.rms_norm."),
                                   std::pair(".self_attn.q_proj.", ".multi_head_attention.query."),
                                   std::pair(".self_attn.k_proj.", ".multi_head_attention.key."),
                                   std::pair(".self_attn.v_proj.", ".multi_head_attention.value."),
                                   std::pair(".self_attn.o_proj.", ".multi_head_attention.linear."),
                                   std::pair(".block_sparse_moe.gate.", ".router."),
                                   std::pair(".block_sparse_moe.experts.", ".moe."),
                                   std::pair(".w1.", ".linear."),
                                   std::pair(".w3.", ".linear_v."),
                                   std::pair(".w2.", ".linear_1."),
                                   std::pair(".pre_attn_norm.", ".rms_norm."),
                                   std::pair(".post_attn_norm.", ".rms_norm_1."),
                                   std::pair(".pre_moe_norm.", ".rms_norm_2."),
                                   std::pair(".post_moe_norm.", ".rms_norm_3.")}) {
      other = replaced(other, from, to);
    }
    EXPECT_NE(other, name);
    renamed[other] = tensor;
  }
  write("model.safetensors", renamed);
  expect_weights(model, tensors);
}

TEST_F(Weights, NamesOfNobodyAreRefusedAsSuch) {
  write("model.safetensors", {{"tok_embeddings.weight", {{2}, {1, 2}}}});
  const std::string text = refusal(tiny_model());
  expect_part(text, "holds 1 tensors, and the name of none is known: tok_embeddings.weight");
  expect_part(text, "hpcai-tech/grok-1");
}

TEST_F(Weights, TwoNamesOfOneTensorAreRefused) {
  Tensors tensors = tensors_of(tiny_model());
  tensors["model.norm.scale"] = tensors["model.norm.weight"];
  write("model.safetensors", tensors);
  expect_part(refusal(tiny_model()), "tensor 'model.norm.scale' is in model.safetensors and, as");
}

// As xai-org/grok-2 is published: experts in one file a rank, all else in common ones.
class Presharded : public Weights {
 protected:
  static constexpr int kNumRanks = 3;
  void SetUp() override {
    for (const auto& [name, tensor] : tensors_) {
      if (name.find("experts") == std::string::npos) {
        common_[name.starts_with("model.layers") ? 1 : 0][name] = tensor;
        continue;
      }
      const bool is_w2 = name.find(".w2.") != std::string::npos;
      for (int rank = 0; rank < kNumRanks; ++rank) {
        parts_[is_w2 ? 1 : 0][rank][name] = part_of(tensor, is_w2 ? 1 : 0, rank, kNumRanks);
      }
    }
    write("pytorch_model-00000-TP-common.safetensors", common_[0]);
    write("pytorch_model-00001-TP-common.safetensors", common_[1]);
    for (int file = 0; file < 2; ++file) {
      for (int rank = 0; rank < kNumRanks; ++rank) {
        write(name_of(file, rank), parts_[file][rank]);
      }
    }
  }
  static std::string name_of(int file, int rank) {
    return "pytorch_model-0000" + std::to_string(6 + file) + "-TP-00" + std::to_string(rank) +
           ".safetensors";
  }
  const Tensors tensors_ = tensors_of(tiny_model());
  Tensors common_[2];
  Tensors parts_[2][kNumRanks];
};

TEST_F(Presharded, PartsAreJoined) {
  expect_weights(tiny_model(), tensors_);
}

TEST_F(Presharded, CopiesAreReadOnce) {
  const std::string norm = "model.norm.weight";
  common_[0].erase(norm);
  write("pytorch_model-00000-TP-common.safetensors", common_[0]);
  for (int rank = 0; rank < kNumRanks; ++rank) {
    parts_[0][rank][norm] = tensors_.at(norm);
    write(name_of(0, rank), parts_[0][rank]);
  }
  expect_weights(tiny_model(), tensors_);
  parts_[0][2][norm].values[1] += 1;
  write(name_of(0, 2), parts_[0][2]);
  expect_part(refusal(tiny_model()), "hold all of tensor model.norm.weight, with other values");
}

TEST_F(Presharded, AFileThatIsMissingIsNamed) {
  fs::remove(directory_.path() / name_of(1, 0));
  expect_part(refusal(tiny_model()),
              "1 of its files are missing: pytorch_model-00007-TP-000.safetensors");
}

// Where the last of every kind is missing no name says so; the shapes do.
TEST_F(Presharded, PartsThatDoNotMakeUpTheTensorAreRefused) {
  fs::remove(directory_.path() / name_of(0, 2));
  fs::remove(directory_.path() / name_of(1, 2));
  const std::string text = refusal(tiny_model());
  expect_part(text, "is in 2 parts of shape [4, 8]");
  expect_part(text, "the [12, 8] that the config makes it");
}

TEST_F(Presharded, FilesThatHoldOtherTensorsAreRefused) {
  Tensors other = parts_[0][1];
  other.erase(other.begin());
  write(name_of(0, 1), other);
  expect_part(refusal(tiny_model()), "hold tensors of other names");
}

TEST_F(Presharded, OtherLayersAreNamed) {
  ModelConfig model = tiny_model();
  model.num_layers = 1;
  const std::string text = refusal(model);
  expect_part(text, "holds 21 tensors that the config has no place for: ");
  expect_part(text, "model.layers.1.block_sparse_moe.experts.2.w2.weight");
  expect_part(text, "model.layers.1.post_moe_norm.weight");
}

// Which names one file of a tensor, and there is one for each rank.
TEST_F(Presharded, AnIndexSaysWhichTensorsThereAre) {
  std::string map;
  for (const auto& [name, tensor] : tensors_) {
    map += (map.empty() ? "\"" : ", \"") + name + "\": \"" + name_of(0, 0) + "\"";
  }
  directory_.write("model.safetensors.index.json", "{\"weight_map\": {" + map + "}}");
  expect_weights(tiny_model(), tensors_);
  directory_.write("model.safetensors.index.json",
                   "{\"weight_map\": {" + map + ", \"ghost\": \"x.safetensors\"}}");
  expect_part(refusal(tiny_model()), "in none of the -TP- files are 1 of its tensors: ghost");
}

TEST_F(Weights, EveryTensorWithoutAPlaceIsNamedAndEveryMissingOne) {
  write("model.safetensors", tensors_of(tiny_model()));
  ModelConfig model = tiny_model();
  model.num_layers = 1;
  const std::string extra = refusal(model);
  model.num_layers = 3;
  const std::string missing = refusal(model);
  for (const auto& [name, tensor] : tensors_of(model)) {
    if (name.starts_with("model.layers.1.")) {
      expect_part(extra, name);
    } else if (name.starts_with("model.layers.2.")) {
      expect_part(missing, name);
    }
  }
  expect_part(extra, "holds 21 tensors that the config has no place for");
  expect_part(missing, "lacks 21 tensors that the config asks for");
  model = tiny_model();
  model.ffn_dim = 16;
  expect_part(refusal(model),
              "model.layers.0.block_sparse_moe.experts.0.w1.weight has shape [12, 8], not [16, 8]");
}

TEST_F(Weights, PiecesThatAreNotTheModelAreNamed) {
  Tensors tensors = tensors_of(tiny_model());
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  const Tensor whole = tensors.at(q);
  tensors.erase(q);
  tensors[q + "#0:0:4:0:32"] = {{32}, {whole.values.begin(), whole.values.begin() + 32}};
  write("weights-00000-of-00002.safetensors", tensors);
  const std::string half = refusal(tiny_model());
  expect_part(half, q + " has 32 elements in all pieces, not 64");
  write("weights-00001-of-00002.safetensors",
        {{q + "#0:4:4:0:32", {{32}, {whole.values.begin() + 32, whole.values.end()}}}});
  expect_weights(tiny_model(), tensors_of(tiny_model()));
  ModelConfig model = tiny_model();
  model.num_layers = 1;
  expect_part(refusal(model), "holds 21 tensors that the config has no place for");
}

TEST_F(Weights, AHeadIsThereAsTheConfigSays) {
  ModelConfig tied = tiny_model();
  tied.tie_embeddings = true;
  Tensors tensors = tensors_of(tied);
  write("model.safetensors", tensors);
  expect_weights(tied, tensors);
  const std::string text = refusal(tiny_model());
  expect_part(text, "lacks 1 tensor that the config asks for: lm_head.weight");
  expect_part(text, "set tie_word_embeddings to true");

  Tensors with_head = tensors;
  with_head[kHeadName] = tensors[kEmbeddingName];
  write("model.safetensors", with_head);
  expect_weights(tied, tensors);
  with_head[kHeadName].values.back() += 1;
  write("model.safetensors", with_head);
  expect_part(load_refusal(tied), "lm_head.weight differs from model.embed_tokens.weight");
  with_head[kHeadName].shape = {8, 16};
  write("model.safetensors", with_head);
  expect_part(refusal(tied), "lm_head.weight has shape [8, 16], not [16, 8]");
}

// A head that is tied may have been stored in another type.
TEST_F(Weights, ATiedHeadIsComparedByItsValues) {
  ModelConfig tied = tiny_model();
  tied.tie_embeddings = true;
  const Tensors tensors = tensors_of(tied);
  std::vector<TensorSource> sources = sources_of(tensors);
  std::vector<bf16> head;
  for (const float value : tensors.at(kEmbeddingName).values) {
    head.emplace_back(value);
  }
  sources.push_back(source<bf16>(kHeadName, {16, 8}, head, 4096));
  write_safetensors(directory_.path() / "model.safetensors", sources);
  expect_weights(tied, tensors);
}

TEST_F(Weights, ValuesThatAreNotFiniteAreNamedWithTheirPlace) {
  Tensors tensors = tensors_of(tiny_model());
  tensors["model.norm.weight"].values[3] = std::nanf("");
  Tensor& up = tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"];
  up.values[8 * 5 + 2] = -std::numeric_limits<float>::infinity();
  up.values.back() = std::nanf("");
  write("model.safetensors", tensors);
  const std::string text = load_refusal(tiny_model());
  expect_part(text, "holds 2 tensors with values that are not finite: ");
  expect_part(text, "model.norm.weight (1 of 8, first [3] = nan)");
  expect_part(text, "experts.2.w3.weight (2 of 96, first [5, 2] = -inf)");

  const OwnedStream stream(Device::cpu);
  Parameters parameters(plan_parameters(tiny_model(), DType::f32),
                        DType::f32,
                        Device::cpu,
                        Parameters::Gradients::none);
  StoredWeights(directory_.path(), tiny_model())
      .load(parameters, stream.view(), StoredWeights::OnNonFinite::warn);
}

// The largest f32 has no neighbour in bf16 but infinity.
TEST_F(Weights, WhatOverflowsInBf16IsNotFinite) {
  Tensors tensors = tensors_of(tiny_model());
  tensors[kEmbeddingName].values[0] = std::numeric_limits<float>::max();
  write("model.safetensors", tensors);
  read(directory_.path(), tiny_model(), DType::f32);
  expect_part(
      error_text<CheckpointError>([&] { read(directory_.path(), tiny_model(), DType::bf16); }),
      "model.embed_tokens.weight (1 of 128, first [0, 0] = inf)");
}

TEST_F(Weights, AnExportWouldRoundNothing) {
  const ModelConfig model = tiny_model();
  const Tensors tensors = tensors_of(model);
  const auto dtype_with = [&](const std::string& wide, bool f64) {
    std::vector<TensorSource> sources;
    for (const auto& [name, tensor] : tensors) {
      const Tensors one{{name, tensor}};
      sources.push_back(name != wide ? sources_of<bf16>(one).front()
                        : f64        ? sources_of<double>(one).front()
                                     : sources_of<float>(one).front());
    }
    fs::remove(directory_.path() / "model.safetensors");
    write_safetensors(directory_.path() / "model.safetensors", sources);
    return StoredWeights(directory_.path(), model).dtype();
  };
  EXPECT_EQ(dtype_with("", false), DType::bf16);
  EXPECT_EQ(dtype_with("model.norm.weight", false), DType::bf16);  // f32 in any model
  EXPECT_EQ(dtype_with("model.norm.weight", true), DType::f64);
  EXPECT_EQ(dtype_with("lm_head.weight", false), DType::f32);
  EXPECT_EQ(dtype_with("lm_head.weight", true), DType::f64);
}

TEST_F(Weights, TypesOfQuantisedModelsAreNamed) {
  const std::string header =
      R"({"model.norm.weight":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]},)"
      R"("model.norm.weight_scale":{"dtype":"F32","shape":[],"data_offsets":[8,12]},)"
      R"("lm_head.weight":{"dtype":"I8","shape":[2,2],"data_offsets":[12,16]}})";
  const std::uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
  directory_.write("model.safetensors", file + header + std::string(16, '1'));
  const std::string text = refusal(tiny_model());
  expect_part(text, "1 tensor of type F8_E4M3: model.norm.weight; 1 tensor of type I8: lm_head");
  expect_part(text, "quantised");
}

}  // namespace
}  // namespace memphis
