// SPDX-License-Identifier: Apache-2.0
#include "csrc/cli/model_argument.h"

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

Device device_of(const ModelArgument& argument) {
  return resolve_device(argument.device == "cuda" ? DeviceChoice::cuda : DeviceChoice::cpu);
}

DType compute_of(const ModelArgument& argument) {
  return argument.compute == "bf16" ? DType::bf16 : DType::f32;
}

}  // namespace

void add_model_argument(CLI::App& command, ModelArgument& argument) {
  command
      .add_option("model",
                  argument.path,
                  "A model folder (config.json and safetensors) or a run "
                  "directory")
      ->required();
  command.add_option("--device", argument.device, "cpu (default) or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  command.add_option("--compute", argument.compute, "f32 (default) or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}));
}

ModelFolder::ModelFolder(const std::string& argument)
    : path(find_model_folder(argument)), config(read_hf_config(path / "config.json")) {}

LoadedModel::LoadedModel(const ModelFolder& folder, const ModelArgument& argument)
    : LoadedModel(folder, argument, StoredWeights(folder.path, folder.config)) {}

LoadedModel::LoadedModel(const ModelFolder& folder,
                         const ModelArgument& argument,
                         const StoredWeights& stored)
    : config(folder.config),
      stream(device_of(argument)),
      groups(device_of(argument)),
      parameters(config, compute_of(argument), device_of(argument), Parameters::Gradients::none) {
  stored.load(parameters, stream.view());
}

}  // namespace memphis
