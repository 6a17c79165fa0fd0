// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"

namespace memphis {

// `MODEL_DIR [--device D] [--compute C]`: a model folder in Hugging Face's layout, or a run
// directory, whose newest valid checkpoint it then is.
struct ModelArgument {
  std::string path;
  std::string device = "cpu";
  std::string compute = "f32";
};
void add_model_argument(CLI::App& command, ModelArgument& argument);

// The model that an argument names, in memory.
struct LoadedModel {
  explicit LoadedModel(const ModelArgument& argument);

  std::string folder;
  ModelConfig config;
  OwnedStream stream;
  Groups groups;
  Parameters parameters;
};

}  // namespace memphis
