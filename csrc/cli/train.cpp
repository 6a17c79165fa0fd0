// SPDX-License-Identifier: Apache-2.0
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/cli/source_tree.h"
#include "csrc/cli/threads.h"
#include "csrc/comm/job.h"
#include "csrc/core/log.h"
#include "csrc/train/stop_signal.h"
#include "csrc/train/trainer.h"

namespace memphis {
namespace {

// While data and checkpoints are read, and other jobs waited for: nothing is lost by ending there.
[[noreturn]] void end_before_training(World& world, int signal) {
  const std::string message = fmt::format(
      "stopped by signal {} ({}) before its first step (all there was to save is "
      "saved); start the same command again to go on",
      signal,
      strsignal(signal));
  if (world.size() > 1) {
    world.abort(ExitCode::preempted, message);
  } else {
    log_error("memphis: {}", message);
  }
  std::_Exit(static_cast<int>(ExitCode::preempted));
}

}  // namespace

void add_train_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand("train", "Trains a model, or goes on training it");
  auto arguments = std::make_shared<ConfigArguments>();
  add_config_arguments(*command, *arguments);
  auto quiet = std::make_shared<bool>(false);
  command->add_flag("-q,--quiet", *quiet, "Logs warnings and errors alone");
  command->callback([arguments, quiet] {
    if (*quiet) {
      log_warnings_alone();
    }
    // To the very end: a rank that a signal ends while it loads, or when all is saved, would look
    // like one that is lost.
    std::optional<StopSignal> stop;
    std::signal(SIGPIPE, SIG_IGN);  // who reads the log may end: the log is lost, the run goes on
    run_as_job([&](World& world) {
      const Config config = load_config_of_job(*arguments, world);
      share_cores(world);
      stop.emplace();
      const NothingToSave start([&](int signal) { end_before_training(world, signal); });
      Trainer trainer(config, own_text_roots(), world);
      trainer.run();
    });
  });
}

}  // namespace memphis
