// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <string>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/cli/commands.h"
#include "csrc/cli/model_argument.h"
#include "csrc/cli/threads.h"
#include "csrc/core/printable.h"

namespace memphis {
namespace {

void export_model(const std::string& run_dir, const std::string& out_dir) {
  require_new_folder(out_dir);
  const ModelFolder folder(run_dir);
  const StoredWeights stored(folder.path, folder.config);
  require_fits(folder, stored.dtype(), Device::cpu);
  const OwnedStream stream(Device::cpu);
  // In the dtype of the stored weights: an export rounds nothing.
  Parameters parameters(plan_parameters(folder.config, stored.dtype()),
                        stored.dtype(),
                        Device::cpu,
                        Parameters::Gradients::none);
  // Whoever looks for what went wrong wants weights that are not finite as they are.
  stored.load(parameters, stream.view(), StoredWeights::OnNonFinite::warn);
  export_model_folder(out_dir,
                      folder.config,
                      parameters,
                      folder.path,
                      find_tokenizer(folder.path, folder.config.vocab_size),
                      stream.view());
  fmt::print("exported {} to {}\n",
             printable(folder.path.string(), Lines::kept),
             printable(out_dir, Lines::kept));
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
  command->callback([arguments] {
    use_cores();
    export_model(arguments->run_dir, arguments->out_dir);
  });
}

}  // namespace memphis
