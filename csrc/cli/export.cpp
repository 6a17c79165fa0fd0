// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <string>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/cli/commands.h"

namespace memphis {
namespace {

void export_model(const std::string& run_dir, const std::string& out_dir) {
  const std::filesystem::path folder = find_model_folder(run_dir);
  const ModelConfig config = read_hf_config(folder / "config.json");
  const OwnedStream stream(Device::cpu);
  // In the dtype of the checkpoint's weights: an export rounds nothing.
  Parameters parameters(config, stored_dtype(folder), Device::cpu, Parameters::Gradients::none);
  load_model_folder(folder, parameters, stream.view());
  export_model_folder(out_dir, config, parameters, stream.view());
  fmt::print("exported {} to {}\n", folder.string(), out_dir);
}

}  // namespace

void add_export_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "export", "Writes the newest checkpoint of a run as a Hugging Face model folder");
  struct Arguments {
    std::string run_dir;
    std::string out_dir;
  };
  auto arguments = std::make_shared<Arguments>();
  command->add_option("run_dir", arguments->run_dir, "A run directory")->required();
  command->add_option("out_dir", arguments->out_dir, "A new folder")->required();
  command->callback([arguments] { export_model(arguments->run_dir, arguments->out_dir); });
}

}  // namespace memphis
