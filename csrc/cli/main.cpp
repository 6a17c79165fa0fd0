// SPDX-License-Identifier: Apache-2.0
#include <exception>
#include <string>

#include "csrc/cli/commands.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

int run(int argc, char** argv) {
  CLI::App program("memphis trains Grok-style mixture-of-experts language models.", "memphis");
  program.require_subcommand(1);
  program.set_version_flag("--version", MEMPHIS_VERSION);
  add_train_command(program);
  add_plan_command(program);
  add_logits_command(program);
  add_export_command(program);
  add_generate_command(program);
  add_bench_command(program);
  try {
    program.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return program.exit(help);
  } catch (const CLI::ParseError& error) {
    program.exit(error);
    return static_cast<int>(ExitCode::config);
  } catch (const FailedElsewhere& error) {
    return static_cast<int>(error.code());
  } catch (const Error& error) {
    spdlog::error("memphis: {}", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    spdlog::error(
        "memphis: {} (not an error that memphis knows); please report it with the "
        "command and its config",
        error.what());
    return static_cast<int>(ExitCode::internal);
  }
  return static_cast<int>(ExitCode::done);
}

}  // namespace
}  // namespace memphis

int main(int argc, char** argv) {
  memphis::configure_log();
  return memphis::run(argc, argv);
}
