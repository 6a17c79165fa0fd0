// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/plan/parameters.h"

// Whether the tensors that are stored are those of a model: one comparison for every reader of
// weights and of optimizer state, made on names and shapes before anything is read or touched.
namespace memphis {

constexpr const char* kEmbeddingName = "model.embed_tokens.weight";
constexpr const char* kHeadName = "lm_head.weight";  // a parameter unless it is the embedding

struct NamedShape {
  std::string name;
  std::vector<std::int64_t> shape;  // empty where its files do not say it, as of pieces
};

// How two sets of tensors differ; all three are empty where they do not.
struct TensorDifference {
  std::vector<std::string> extra;        // stored, without a place in the model
  std::vector<std::string> missing;      // of the model, not stored
  std::vector<std::string> other_shape;  // "NAME has shape [2, 3], not [4, 3]"

  bool empty() const { return extra.empty() && missing.empty() && other_shape.empty(); }
};

// `optional` may be stored, and then has this shape, or not. Each list is in the order of its
// input. Of a name that is stored twice both shapes are looked at.
TensorDifference compare_tensors(const std::vector<NamedShape>& planned,
                                 const std::vector<NamedShape>& stored,
                                 const std::vector<NamedShape>& optional = {});

// All names of the difference, in one line: what an error says is wrong. Names that differ in
// numbers alone are folded where there are many: "model.layers.{2..63}.mlp.down_proj.weight", as a
// shell writes them.
std::string describe(const TensorDifference& difference);

// CheckpointError, naming `place` and all tensors that differ, unless there is no difference.
// `advice` is what to do.
void require_same_tensors(
    const std::filesystem::path& place,
    const TensorDifference& difference,
    std::string_view advice = "use the config.json that belongs to these weights");

// What a model has a place for: its logical parameters, in the order of files.
std::vector<NamedShape> planned_weights(const ParameterPlan& plan);

// The names in one line, printable, folded where there are many.
std::string list_names(const std::vector<std::string>& names);

// The names, those that differ in numbers alone folded into ranges. In the order in which each
// first comes.
std::vector<std::string> fold_names(const std::vector<std::string>& names);

}  // namespace memphis
