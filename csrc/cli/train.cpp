// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "csrc/cli/commands.h"
#include "csrc/cli/source_tree.h"
#include "csrc/cli/threads.h"
#include "csrc/comm/job.h"
#include "csrc/config/load.h"
#include "csrc/core/log.h"
#include "csrc/train/stop_signal.h"
#include "csrc/train/trainer.h"

namespace memphis {

void add_train_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand("train", "Trains a model, or goes on training it");
  auto arguments = std::make_shared<ConfigArguments>();
  add_config_arguments(*command, *arguments);
  command->callback([arguments] {
    // To the very end: a rank that a signal ends while it loads, or when all is saved, would look
    // like one that is lost.
    std::optional<StopSignal> stop;
    run_as_job([&](World& world) {
      const Config config = load_config(arguments->file, arguments->overrides, world.size());
      share_cores(world);
      stop.emplace();
      Trainer trainer(config, own_text_roots(), world);
      trainer.run();
    });
  });
}

}  // namespace memphis
