// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>

#include "csrc/checkpoint/weights.h"
#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/data/tokenizer.h"
#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"
#include "csrc/model/weight_residency.h"
#include "csrc/plan/training_plan.h"

namespace memphis {

// `MODEL_DIR [--device D] [--compute C]`: a model folder in Hugging Face's layout, or a run
// directory, whose newest valid checkpoint it then is.
struct ModelArgument {
  std::string path;
  std::string device = "cpu";
  std::string compute = "f32";
};
void add_model_argument(CLI::App& command, ModelArgument& argument);

// The model folder that an argument names, and the model that its config.json describes.
struct ModelFolder {
  explicit ModelFolder(const std::string& argument);

  // Whether it was the checkpoint of a run that is at it and has taken it away since: a newer one
  // has come.
  bool is_gone() const;

  std::filesystem::path path;
  ModelConfig config;
};

// The tokenizer whose ids the model has: of bytes, the one that a checkpoint's run named, or the one
// that lies in the folder. DataError where there is none, or it is not the one of the run: of
// another's ids a text is a random choice. To be asked before the weights are read.
std::shared_ptr<const Tokenizer> tokenizer_of(const ModelFolder& folder);

// PreflightError if the weights do not fit into the device's free memory as `compute`.
void require_fits(const ModelFolder& folder, DType compute, Device device);

// Its weights, in memory. CheckpointError, before memory is taken, if they are not those of the
// config, and after that if they are not finite.
struct LoadedModel {
  LoadedModel(const ModelFolder& folder, const ModelArgument& argument);

  // For so many sequences at a time, in the dtype and on the device of the weights.
  InferencePlan plan(std::int64_t num_sequences, std::int64_t sequence_length) const;

  ModelConfig config;
  OwnedStream stream;
  Groups groups;
  Parameters parameters;
  WeightResidency residency;

 private:
  LoadedModel(const ModelFolder& folder,
              const ModelArgument& argument,
              const StoredWeights& stored);
};

}  // namespace memphis
