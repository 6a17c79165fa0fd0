// SPDX-License-Identifier: Apache-2.0
//
// Models into a run and out of it: weights of a folder arrive on ranks of any layout as they are
// stored, and leave them for a folder of the same bytes, whoever writes it.
#include "csrc/train/initial_weights.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/checkpoint/folder_tokenizer.h"
#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/model_folder.h"
#include "csrc/checkpoint/safetensors.h"
#include "csrc/checkpoint/store.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "tests/checkpoint/source.h"
#include "tests/support/error_text.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

// Small enough for several files of weights, of several tensors each.
constexpr std::uint64_t kSmallShard = 20'000;

using Files = std::map<std::string, std::string>;
Files files_of(const fs::path& folder) {
  Files files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = read_text(entry.path());
  }
  return files;
}

class InitialWeightsTest : public testing::Test {
 protected:
  using Overrides = std::vector<std::string>;

  fs::path path(const std::string& name) const { return directory_.path() / name; }

  // Of a run's weights as it begins.
  void export_beginning(const std::string& folder, const Layout& layout, Overrides overrides) {
    overrides.insert(overrides.end(), layout.overrides.begin(), layout.overrides.end());
    on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
      RankRun run(world, tiny_yaml(directory_), overrides);
      ModelFolderWriter writer(
          path(folder), run.config().model, run.trainer().parameters().compute(), kSmallShard);
      export_from_ranks(writer,
                        run.trainer().parameters(),
                        run.trainer().groups(),
                        {.is_byte = true, .files = {}},
                        run.trainer().stream());
    });
  }

  static std::vector<Layout> some_layouts() {
    return {layout_named("one"),
            layout_named("data2_shared_weights"),
            layout_named("data2_tensor2_expert2_split2"),
            layout_named("tensor4_shared_heads"),
            piped("pipeline2", layout_named("data2_tensor2"), 2, {})};
  }

  TemporaryDirectory directory_;
};

TEST_F(InitialWeightsTest, EveryLayoutTakesAFolderInAndGivesTheSameBytesOut) {
  const Overrides model = {"model.vocab_size=300", "batch.global_batch=16"};
  for (const std::string tied : {"true", "false"}) {
    Overrides drawn = model;
    drawn.push_back("model.tie_embeddings=" + tied);
    export_beginning("drawn_" + tied, layout_named("one"), drawn);
    const Files expected = files_of(path("drawn_" + tied));
    EXPECT_TRUE(expected.contains("model.safetensors.index.json"));
    EXPECT_GT(expected.size(), 7U);
    for (const auto& [name, bytes] : expected) {
      if (name.ends_with(".safetensors")) {
        const SafetensorsFile file(path("drawn_" + tied) / name);
        std::uint64_t tensor_bytes = 0;
        for (const auto& [tensor, stored] : file.tensors()) {
          tensor_bytes += stored.num_bytes;
        }
        EXPECT_TRUE(file.tensors().size() == 1 || tensor_bytes <= kSmallShard) << name;
      }
    }
    Overrides begun = drawn;
    begun.insert(begun.end(), {"run.seed=7", "run.init_from=" + path("drawn_" + tied).string()});
    for (const Layout& layout : some_layouts()) {
      const std::string folder = layout.name + "_" + tied;
      export_beginning(folder, layout, begun);
      EXPECT_EQ(files_of(path(folder)), expected) << folder;
    }
  }
}

// As xai-org/grok-2 is published: each file cut by tensor rank has a part of the experts, and ranks of
// the run, which are cut otherwise, read what is theirs of them.
TEST_F(InitialWeightsTest, FilesCutByTensorRankAreReadByEveryLayout) {
  export_beginning("drawn", layout_named("one"), {"batch.global_batch=16"});
  const Files expected = files_of(path("drawn"));
  constexpr std::int64_t kParts = 2;
  std::vector<TensorSource> common;
  std::vector<std::vector<TensorSource>> parts(kParts);
  for (const auto& [file, bytes] : expected) {
    if (!file.ends_with(".safetensors")) {
      continue;
    }
    const SafetensorsFile stored(path("drawn") / file);
    for (const auto& [name, tensor] : stored.tensors()) {
      std::size_t count = 1;
      for (const std::int64_t dim : tensor.shape) {
        count *= static_cast<std::size_t>(dim);
      }
      std::vector<float> values(count);
      stored.read(
          name, tensor.shape, 0, static_cast<std::int64_t>(count), DType::f32, values.data());
      if (name.find("experts") == std::string::npos) {
        common.push_back(source<float>(name, tensor.shape, values));
        continue;
      }
      const bool by_columns = name.find(".w2.") != std::string::npos;
      const std::int64_t rows = tensor.shape[0] / (by_columns ? 1 : kParts);
      const std::int64_t columns = tensor.shape[1] / (by_columns ? kParts : 1);
      for (std::int64_t part = 0; part < kParts; ++part) {
        std::vector<float> piece;
        for (std::int64_t row = 0; row < rows; ++row) {
          for (std::int64_t column = 0; column < columns; ++column) {
            const std::int64_t from_row = row + (by_columns ? 0 : part * rows);
            const std::int64_t from_column = column + (by_columns ? part * columns : 0);
            piece.push_back(
                values[static_cast<std::size_t>(from_row * tensor.shape[1] + from_column)]);
          }
        }
        parts[static_cast<std::size_t>(part)].push_back(
            source<float>(name, {rows, columns}, piece));
      }
    }
  }
  fs::create_directories(path("cut"));
  fs::copy(path("drawn/config.json"), path("cut/config.json"));
  write_safetensors(path("cut/m-TP-common.safetensors"), common);
  write_safetensors(path("cut/n-TP-000.safetensors"), parts[0]);
  write_safetensors(path("cut/n-TP-001.safetensors"), parts[1]);
  for (const Layout& layout : some_layouts()) {
    export_beginning(
        layout.name,
        layout,
        {"batch.global_batch=16", "run.seed=7", "run.init_from=" + path("cut").string()});
    EXPECT_EQ(files_of(path(layout.name)), expected) << layout.name;
  }
}

// Of f32 weights a run in bf16 keeps all that they say, where it keeps master weights.
TEST_F(InitialWeightsTest, MasterWeightsAreThoseOfTheFolderAndNotTheRoundedOnes) {
  export_beginning("drawn", layout_named("one"), {});
  const Layout layout = layout_named("data2_expert2");
  Tensors exact;
  on_ranks(Ranks::threads, 1, [&](World& world) {
    RankRun run(world, tiny_yaml(directory_), {});
    exact = run.weights();
  });
  Overrides overrides = layout.overrides;
  overrides.insert(overrides.end(),
                   {"precision.compute=bf16",
                    "batch.global_batch=16",
                    "run.seed=7",
                    "run.init_from=" + path("drawn").string()});
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    RankRun run(world, tiny_yaml(directory_), overrides);
    int masters = 0;
    for (const Optimizer::StateTensor& state : run.trainer().optimizer().state()) {
      if (!state.name.ends_with(".master")) {
        continue;
      }
      ++masters;
      const std::vector<double>& whole = exact.at(state.parameter->name);
      for_each_run(*state.parameter,
                   state.local,
                   [&](std::int64_t at, std::int64_t from, std::int64_t count) {
                     for (std::int64_t i = 0; i < count; ++i) {
                       ASSERT_EQ(element(state.view, from + i - state.local.begin),
                                 whole[static_cast<std::size_t>(at + i)])
                           << state.name;
                     }
                   });
    }
    EXPECT_GT(masters, 10);
  });
}

// Of weights that several ranks hold each reads a piece: all have them whole, and compute with them.
TEST_F(InitialWeightsTest, EveryRankHasTheWeightsThatItHolds) {
  const Overrides model = {"precision.compute=f64", "batch.global_batch=16"};
  export_beginning("drawn", layout_named("one"), model);
  double expected = 0;
  for (const Layout& layout : some_layouts()) {
    Overrides overrides = layout.overrides;
    overrides.insert(overrides.end(), model.begin(), model.end());
    overrides.insert(overrides.end(), {"run.seed=7", "run.init_from=" + path("drawn").string()});
    on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
      RankRun run(world, tiny_yaml(directory_), overrides);
      const double loss = run.same_on_all(run.trainer().validation_loss());
      if (world.rank() == 0) {
        expected = expected == 0 ? loss : expected;
        EXPECT_NEAR(loss, expected, 1e-9) << layout.name;
      }
    });
  }
}

// What SGLang's and vLLM's Grok1ForCausalLM look for in a folder: every name that their loaders ask
// for, whole, in the shape that they take, and no other. q, k and v, the two halves of gate_up and w1
// and w3 of an expert they put together themselves. SGLang wants a head even where it is tied.
TEST_F(InitialWeightsTest, ServersFindTheTensorsAndKeysThatTheyLoad) {
  using Shape = std::vector<std::int64_t>;
  constexpr std::int64_t V = 259;
  constexpr std::int64_t D = 32;
  constexpr std::int64_t F = 48;
  constexpr std::int64_t NH = 32;
  constexpr std::int64_t GH = 16;
  constexpr std::int64_t E = 4;
  constexpr std::int64_t dense_F = 40;
  for (const bool grok2 : {false, true}) {
    std::map<std::string, Shape> expected = {{"model.embed_tokens.weight", {V, D}},
                                             {"model.norm.weight", {D}},
                                             {"lm_head.weight", {V, D}}};
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      for (const std::string norm : {"pre_attn", "post_attn", "pre_moe", "post_moe"}) {
        expected[layer + norm + "_norm.weight"] = {D};
      }
      expected[layer + "self_attn.q_proj.weight"] = {NH, D};
      expected[layer + "self_attn.k_proj.weight"] = {GH, D};
      expected[layer + "self_attn.v_proj.weight"] = {GH, D};
      expected[layer + "self_attn.o_proj.weight"] = {D, NH};
      expected[layer + "block_sparse_moe.gate.weight"] = {E, D};
      for (std::int64_t e = 0; e < E; ++e) {
        const std::string expert = layer + "block_sparse_moe.experts." + std::to_string(e) + ".";
        expected[expert + "w1.weight"] = {F, D};
        expected[expert + "w3.weight"] = {F, D};
        expected[expert + "w2.weight"] = {D, F};
      }
      if (grok2) {
        expected[layer + "mlp.gate_proj.weight"] = {dense_F, D};
        expected[layer + "mlp.up_proj.weight"] = {dense_F, D};
        expected[layer + "mlp.down_proj.weight"] = {D, dense_F};
      }
    }
    const std::string folder = grok2 ? "grok2" : "grok1";
    Overrides overrides = {"precision.compute=bf16"};
    if (grok2) {
      overrides.insert(overrides.end(),
                       {"model.dense_ffn_dim=40",
                        "model.tie_embeddings=false",
                        "model.router_cap=30",
                        "model.final_cap=50",
                        "model.attention_temperature_len=1024"});
    }
    export_beginning(folder, layout_named("one"), overrides);
    std::map<std::string, Shape> found;
    const nlohmann::json index =
        parse_json(read_text(path(folder) / "model.safetensors.index.json")).value();
    std::uint64_t num_bytes = 0;
    for (const auto& [name, file] : index["weight_map"].items()) {
      const SafetensorsFile shard(path(folder) / file.get<std::string>());
      ASSERT_TRUE(shard.tensors().contains(name)) << name;
      const StoredTensor& tensor = shard.tensors().find(name)->second;
      found[name] = tensor.shape;
      num_bytes += tensor.num_bytes;
      EXPECT_EQ(tensor.dtype_name,
                name.ends_with("norm.weight") || name.ends_with("gate.weight") ? "F32" : "BF16")
          << name;
    }
    EXPECT_EQ(found, expected);
    EXPECT_EQ(index["metadata"]["total_size"], num_bytes);

    const nlohmann::json config = parse_json(read_text(path(folder) / "config.json")).value();
    EXPECT_EQ(config["architectures"],
              nlohmann::json({grok2 ? "Grok1ForCausalLM" : "Grok1ModelForCausalLM"}));
    EXPECT_EQ(config["residual_moe"], grok2);
    EXPECT_EQ(config["num_local_experts"], E);  // SGLang
    EXPECT_EQ(config["num_experts"], E);        // vLLM
    EXPECT_EQ(config["moe_intermediate_size"], F);
    EXPECT_EQ(config["intermediate_size"], grok2 ? dense_F : F);
    EXPECT_EQ(config["load_presharded_moe"], false);
    for (const char* key : {"vocab_size",
                            "hidden_size",
                            "num_hidden_layers",
                            "num_attention_heads",
                            "num_key_value_heads",
                            "head_dim",
                            "num_experts_per_tok",
                            "max_position_embeddings",
                            "rms_norm_eps",
                            "rope_theta",
                            "embedding_multiplier_scale",
                            "output_multiplier_scale",
                            "attn_logit_softcapping",
                            "pad_token_id",
                            "tie_word_embeddings",
                            "torch_dtype",
                            "model_type"}) {
      EXPECT_TRUE(config.contains(key)) << key;
    }
    const nlohmann::json generation =
        parse_json(read_text(path(folder) / "generation_config.json")).value();
    const nlohmann::json tokenizer = parse_json(read_text(path(folder) / "tokenizer.json")).value();
    EXPECT_EQ(tokenizer["model"]["vocab"].size(), 259U);
    EXPECT_EQ(tokenizer["model"]["vocab"]["A"], 'A' + 3);
    EXPECT_EQ(tokenizer["model"]["vocab"]["\u0120"], ' ' + 3);  // GPT-2's letter for a space
    EXPECT_EQ(tokenizer["model"]["vocab"]["\u00ff"], 0xFF + 3);
    EXPECT_EQ(tokenizer["model"]["vocab"]["\u0143"], 0xAD + 3);  // a hyphen that is not seen
    EXPECT_EQ(generation["bos_token_id"], 1);
    EXPECT_EQ(generation["eos_token_id"], 2);
  }
}

TEST_F(InitialWeightsTest, AFolderOfAnotherModelIsRefusedWithAllThatDiffers) {
  export_beginning("drawn", layout_named("one"), {});
  const auto begin = [&](const Overrides& overrides) {
    Overrides all = overrides;
    all.push_back("run.init_from=" + path("drawn").string());
    const Trainer trainer(tiny_config(directory_, all), {});
  };
  const std::string keys = error_text<ConfigError>([&] {
    begin({"model.rope_theta=5e5", "model.router_cap=30", "model.num_layers=3"});
  });
  EXPECT_TRUE(follows_grammar(keys)) << keys;
  EXPECT_NE(keys.find("model.rope_theta is 5e+05 and there 10000"), std::string::npos) << keys;
  EXPECT_NE(keys.find("set model.num_layers=2 model.router_cap=0 model.rope_theta=10000"),
            std::string::npos)
      << keys;

  // A config.json that says what the config says, and weights that are not so.
  nlohmann::json config = parse_json(read_text(path("drawn/config.json"))).value();
  config["num_hidden_layers"] = 3;
  config["vocab_size"] = 260;
  std::ofstream(path("drawn/config.json")) << config.dump();
  const std::string tensors = error_text<CheckpointError>([&] {
    begin({"model.num_layers=3", "model.vocab_size=260"});
  });
  EXPECT_TRUE(follows_grammar(tensors)) << tensors;
  EXPECT_NE(tensors.find("lacks 21 tensors"), std::string::npos) << tensors;
  EXPECT_NE(tensors.find("model.embed_tokens.weight has shape [259, 32], not [260, 32]"),
            std::string::npos)
      << tensors;

  EXPECT_NE(error_text<CheckpointError>([&] {
              const Trainer trainer(
                  tiny_config(directory_, {"run.init_from=" + path("missing").string()}), {});
            }).find("holds no model"),
            std::string::npos);
}

TEST_F(InitialWeightsTest, ACheckpointWins) {
  export_beginning("drawn", layout_named("one"), {});
  const Overrides overrides = {"schedule.steps=2",
                               "schedule.warmup_steps=1",
                               "metrics.validate_every=0",
                               "run.init_from=" + path("drawn").string()};
  Tensors trained;
  Tensors resumed;
  for (Tensors* weights : {&trained, &resumed}) {
    on_ranks(Ranks::threads, 1, [&](World& world) {
      RankRun run(world, tiny_yaml(directory_), overrides);
      run.trainer().run();
      *weights = run.weights();
    });
    fs::remove_all(path("drawn"));  // it is not even read
  }
  expect_same_bits(resumed, trained, "weights");
}

TEST_F(InitialWeightsTest, ARunExportsWhileItTrainsAndLosesNothingWhereItCannot) {
  const Overrides overrides = {"schedule.steps=5",
                               "schedule.warmup_steps=1",
                               "checkpoint.every=2",
                               "run.export_every=2",
                               "metrics.validate_every=0"};
  const auto train = [&] {
    Trainer trainer(tiny_config(directory_, overrides), {});
    trainer.run();
  };
  train();
  const fs::path exports = path("run/export");
  for (const std::string step : {"step-00000002", "step-00000004", "step-00000005"}) {
    EXPECT_TRUE(fs::exists(exports / step / "model.safetensors")) << step;
    EXPECT_TRUE(find_tokenizer(exports / step, 259).is_byte);
  }
  // What a process that was killed owes, and what it left.
  fs::remove_all(exports / "step-00000005");
  fs::create_directories(exports / "step-00000005.tmp");
  train();
  EXPECT_TRUE(fs::exists(exports / "step-00000005" / "config.json"));
  EXPECT_FALSE(fs::exists(exports / "step-00000005.tmp"));
  const Files last = files_of(exports / "step-00000005");
  {
    const StoredWeights stored(path("run/step-00000005"),
                               read_hf_config(path("run/step-00000005/config.json")));
    ModelFolderWriter writer(path("by_command"), stored.model(), stored.dtype(), kShardBytes);
    export_stored(writer, stored, stored.folder(), {.is_byte = true, .files = {}});
  }
  EXPECT_EQ(files_of(path("by_command")), last);

  fs::remove_all(path("run"));
  fs::create_directories(path("run"));
  std::ofstream(path("run/export")) << "in the way";
  train();
  EXPECT_TRUE(find_newest_valid(path("run")).newest.has_value());
  EXPECT_EQ(find_newest_valid(path("run")).newest->manifest.step, 5);
}

}  // namespace
}  // namespace memphis::test
