// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/tensor_names.h"

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

using test::error_text;
using test::follows_grammar;
using Names = std::vector<std::string>;

const std::vector<NamedShape> kPlanned{{"a", {2, 3}}, {"b.0", {4}}, {"b.1", {4}}};

TEST(TensorNames, WhatIsStoredMayStandInAnyOrder) {
  EXPECT_TRUE(compare_tensors(kPlanned, {kPlanned[2], kPlanned[0], kPlanned[1]}).empty());
  EXPECT_TRUE(compare_tensors({}, {}).empty());
}

TEST(TensorNames, EachKindOfDifferenceIsFound) {
  const TensorDifference difference =
      compare_tensors(kPlanned, {{"b.2", {4}}, {"a", {3, 2}}, {"b.1", {4}}, {"c", {}}});
  EXPECT_EQ(difference.extra, (Names{"b.2", "c"}));
  EXPECT_EQ(difference.missing, Names{"b.0"});
  EXPECT_EQ(difference.other_shape, Names{"a has shape [3, 2], not [2, 3]"});
  EXPECT_EQ(describe(difference),
            "holds 2 tensors that the config has no place for: b.2, c; it lacks 1 tensor that the "
            "config asks for: b.0; it holds 1 tensor of another shape than the config's: a has "
            "shape [3, 2], not [2, 3]");
}

TEST(TensorNames, AnOptionalTensorHasItsShape) {
  const std::vector<NamedShape> optional{{"head", {2}}};
  std::vector<NamedShape> stored = kPlanned;
  EXPECT_TRUE(compare_tensors(kPlanned, stored, optional).empty());
  stored.push_back({"head", {2}});
  EXPECT_TRUE(compare_tensors(kPlanned, stored, optional).empty());
  stored.back().shape = {3};
  EXPECT_EQ(compare_tensors(kPlanned, stored, optional).other_shape.size(), 1U);
}

TEST(TensorNames, AShapeThatIsNotKnownIsNotCompared) {
  EXPECT_TRUE(compare_tensors({{"a", {2}}}, {{"a", {}}}).empty());
}

TEST(TensorNames, ADifferenceIsAnErrorWithItsPlace) {
  require_same_tensors("folder", {});
  const std::string text = error_text<CheckpointError>(
      [] { require_same_tensors("folder", {.extra = {"x\n"}, .missing = {}, .other_shape = {}}); });
  EXPECT_TRUE(follows_grammar(text)) << text;
  EXPECT_TRUE(text.starts_with("folder holds 1 tensor that the config has no place for: x\\n"))
      << text;
}

TEST(TensorNames, NumbersAreFolded) {
  Names names;
  for (int layer = 2; layer < 64; ++layer) {
    for (int expert = 0; expert < 8; ++expert) {
      names.push_back("layers." + std::to_string(layer) + ".experts." + std::to_string(expert) +
                      ".w1");
    }
    names.push_back("layers." + std::to_string(layer) + ".norm");
  }
  EXPECT_EQ(fold_names(names), (Names{"layers.{2..63}.experts.{0..7}.w1", "layers.{2..63}.norm"}));
  EXPECT_EQ(describe({.extra = names, .missing = {}, .other_shape = {}}),
            "holds 558 tensors that the config has no place for: layers.{2..63}.experts.{0..7}.w1, "
            "layers.{2..63}.norm");
}

TEST(TensorNames, FoldedNamesAreNoOthersThanThese) {
  EXPECT_EQ(fold_names({"a.1", "a.3", "a.2", "a.5"}), (Names{"a.{1..3}", "a.5"}));
  EXPECT_EQ(fold_names({"0.0", "0.1", "1.0"}), (Names{"0.{0..1}", "1.0"}));
  EXPECT_EQ(fold_names({"x.007", "x.008", "y"}), (Names{"x.007", "x.008", "y"}));
  EXPECT_EQ(fold_names({"x.99999999999999999999", "x.0"}),
            (Names{"x.99999999999999999999", "x.0"}));
  EXPECT_EQ(fold_names({}), Names{});
}

TEST(TensorNames, AModelPlansItsParameters) {
  ModelConfig model;
  model.vocab_size = 8;
  model.num_layers = 1;
  model.d_model = 4;
  model.num_heads = 2;
  model.num_kv_heads = 1;
  model.head_dim = 2;
  model.ffn_dim = 6;
  model.num_experts = 1;
  model.experts_per_token = 1;
  const std::vector<NamedShape> planned = planned_weights(plan_parameters(model, DType::f32));
  const auto find = [&](const std::string& name) -> std::vector<std::int64_t> {
    for (const NamedShape& tensor : planned) {
      if (tensor.name == name) {
        return tensor.shape;
      }
    }
    return {};
  };
  EXPECT_EQ(find("model.embed_tokens.weight"), (std::vector<std::int64_t>{8, 4}));
  EXPECT_EQ(find("model.layers.0.self_attn.k_proj.weight"), (std::vector<std::int64_t>{2, 4}));
  EXPECT_EQ(find("model.layers.0.block_sparse_moe.experts.0.w2.weight"),
            (std::vector<std::int64_t>{4, 6}));
}

}  // namespace
}  // namespace memphis
