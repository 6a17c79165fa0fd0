// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/model_folder.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/store.h"
#include "csrc/cli/commands.h"
#include "csrc/cli/model_argument.h"
#include "csrc/cli/threads.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"
#include "csrc/core/printable.h"
#include "csrc/train/run_tokenizer.h"

namespace memphis {
namespace {

// A run's tokenizer lies where its config says; weights are exported without one that is gone.
FolderTokenizer find_tokenizer_of(const ModelFolder& folder) {
  FolderTokenizer found = find_tokenizer(folder.path, folder.config.vocab_size);
  if (found.is_byte || !std::filesystem::exists(folder.path / kManifestName)) {
    return found;
  }
  try {
    return tokenizer_to_export(tokenizer_of(folder).get());
  } catch (const DataError& error) {
    log_warning("the export has no tokenizer: {}", error.what());
  }
  return found;
}

void export_model(const std::string& run_dir,
                  const std::string& out_dir,
                  const std::string& shard_size) {
  const std::optional<std::uint64_t> shard_bytes = parse_bytes(shard_size);
  if (!shard_bytes) {
    throw ConfigError(
        fmt::format("--shard-size {} is no size (a whole number above 0, with KB, MB, "
                    "GB, KiB, MiB or GiB behind it or in bytes); write 5GB",
                    printable(shard_size)));
  }
  require_new_folder(out_dir);
  const auto export_from = [&](const ModelFolder& folder) {
    const StoredWeights stored(folder.path, folder.config);
    // In the dtype of the stored weights: an export rounds nothing.
    ModelFolderWriter writer(out_dir, folder.config, stored.dtype(), *shard_bytes);
    export_stored(writer, stored, folder.path, find_tokenizer_of(folder));
  };
  // A run that is at it takes older checkpoints away, and the one that is read may have become one
  // of them. The newest is there for longer than it takes to read it, or the next one is.
  ModelFolder folder(run_dir);
  try {
    export_from(folder);
  } catch (const Error&) {
    if (!folder.is_gone()) {
      throw;
    }
    log_info("{} went while it was read: what has come since is exported", folder.path.string());
    folder = ModelFolder(run_dir);
    export_from(folder);
  }
  fmt::print("exported {} to {}\n",
             printable(folder.path.string(), Lines::kept),
             printable(out_dir, Lines::kept));
}

}  // namespace

void add_export_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "export",
      "Writes a model, or the newest checkpoint of a run, as a Hugging Face model folder");
  struct Arguments {
    std::string run_dir;
    std::string out_dir;
    std::string shard_size = "5GB";
  };
  auto arguments = std::make_shared<Arguments>();
  command->add_option("run_dir", arguments->run_dir, "A run directory or a model folder")
      ->required();
  command->add_option("out_dir", arguments->out_dir, "A new folder")->required();
  command->add_option("--shard-size",
                      arguments->shard_size,
                      "The size that a file of weights is to have at most: 5GB, 512MiB");
  command->callback([arguments] {
    use_cores();
    export_model(arguments->run_dir, arguments->out_dir, arguments->shard_size);
  });
}

}  // namespace memphis
