// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/store.h"
#include "csrc/checkpoint/weights.h"
#include "csrc/config/config.h"
#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"
#include "csrc/model/weight_residency.h"
#include "csrc/optim/optimizer.h"

// What lies in a checkpoint, and how models and optimizers get there and back.
//
//   config.json             the model, as Hugging Face spells it
//   model.safetensors       weights, by the names of form B: the folder is a model folder too
//   optimizer.safetensors   <parameter>.m, .v and, where weights are narrower than f32, .master
//
// A job of several ranks writes weights-00003-of-00008.safetensors and optimizer-... instead, each
// rank its pieces (pieces.h), each element once. Either is read by any number of ranks: a piece
// says which elements of the logical tensor it has.
namespace memphis {

constexpr const char* kConfigName = "config.json";
constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kOptimizerName = "optimizer.safetensors";

// How a checkpoint was cut.
struct WriterLayout {
  ParallelConfig parallel;
  std::int64_t num_ranks = 1;
};

// The ranks that wrote a checkpoint, by the names of its files.
std::int64_t num_writers(const Manifest& manifest);

// This rank's weights and optimizer state, from a valid checkpoint of any layout. Every rank calls;
// if one fails, all throw. Ranks that hold the same weights read a piece each and hand it on; of
// the files a rank opens those that hold its pieces, by the plan of the `writer`, or all if that is
// unknown. CheckpointError if it is of another model.
void load_checkpoint(const std::filesystem::path& checkpoint,
                     const std::optional<WriterLayout>& writer,
                     const ModelConfig& model,
                     WeightResidency& residency,
                     Optimizer& optimizer,
                     const Groups& groups,
                     Stream stream);

// This rank's weights, and its master weights, from a model folder: what is stored in f32 is f32 in
// master weights, and rounded once to the weights' own type. Optimizer moments stay as they are.
// Ranks that hold the same weights read a piece each and hand it on. Every rank calls, with the same
// folder opened; if one fails, all throw. CheckpointError if values are not finite, or if a tied head
// differs from the embedding.
void load_initial_weights(const StoredWeights& stored,
                          WeightResidency& residency,
                          Optimizer& optimizer,
                          const Groups& groups,
                          Stream stream);

// The folder that holds a model: `path` itself if it has a config.json, else the newest valid
// checkpoint of the run directory `path`. CheckpointError if it is neither, or a checkpoint that is
// not valid.
std::filesystem::path find_model_folder(const std::filesystem::path& path,
                                        const Verify& verify = verify_checkpoint);

// CheckpointError if there is something of that name already.
void require_new_folder(const std::filesystem::path& folder);

}  // namespace memphis
