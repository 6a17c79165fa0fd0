// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/cli/commands.h"
#include "csrc/cli/hints.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/core/write_advice.h"

namespace memphis {
namespace {

// A descriptor of the three that is closed would be the number of the next file that is opened, and
// what is said there would stand in it. What is read from here is at its end; standard output takes
// nothing, so that what a command prints is known to be lost.
void open_standard_streams() {
  constexpr std::array kFlags = {O_RDONLY, O_RDONLY, O_WRONLY};
  for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream) {
    if (::fcntl(stream, F_GETFD) < 0 && errno == EBADF) {
      // The least number that is free, which is this one: those below it are open by now.
      static_cast<void>(::open("/dev/null", kFlags[static_cast<std::size_t>(stream)]));
    }
  }
}

// What a command was asked to print did not arrive.
int report_lost_output() {
  const int error_number = errno;
  log_error("memphis: cannot write standard output ({}); {} and run it again",
            system_reason(error_number),
            write_advice(error_number));
  return static_cast<int>(ExitCode::preflight);
}

// Relative paths are of no folder then, and so are those that a library makes absolute.
void require_current_folder() {
  std::error_code error;
  static_cast<void>(std::filesystem::current_path(error));
  if (error) {
    throw PreflightError(fmt::format(
        "the current folder is not there any more ({}; it was removed, or its file system "
        "is gone); go to one that is, as `cd` alone does",
        error.message()));
  }
}

int run(int argc, char** argv) {
  CLI::App program("memphis trains Grok-style mixture-of-experts language models.", "memphis");
  program.footer(
      "`memphis COMMAND --help` says what a command takes, `memphis docs config` what a config may "
      "say.");
  program.option_defaults()->always_capture_default();
  program.require_subcommand(1);
  program.set_version_flag("--version", MEMPHIS_VERSION);
  add_train_command(program);
  add_plan_command(program);
  add_logits_command(program);
  add_export_command(program);
  add_generate_command(program);
  add_evaluate_command(program);
  add_bench_command(program);
  add_tokenize_command(program);
  add_report_command(program);
  add_docs_command(program);
  add_doctor_command(program);
  check_values(program);
  program.parse_complete_callback(require_current_folder);
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && arguments.front() == "help") {  // help train
    arguments.erase(arguments.begin());
    arguments.emplace_back("--help");
  }
  try {
    if (const auto problem =
            explain_command(program, arguments.empty() ? "-" : arguments.front())) {
      throw ConfigError(*problem);
    }
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
    program.parse(arguments);
  } catch (const CLI::Success& help) {
    return program.exit(help);
  } catch (const CLI::ParseError& error) {
    log_error("memphis: {}", explain(program, error));
    return static_cast<int>(ExitCode::config);
  } catch (const FailedElsewhere& error) {
    return static_cast<int>(error.code());
  } catch (const Error& error) {
    log_error("memphis: {}", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    if (std::ferror(stdout) != 0) {
      return report_lost_output();
    }
    log_error(
        "memphis: {} (not an error that memphis knows); please report it with the "
        "command and its config",
        error.what());
    return static_cast<int>(ExitCode::internal);
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return report_lost_output();
  }
  return static_cast<int>(ExitCode::done);
}

}  // namespace
}  // namespace memphis

int main(int argc, char** argv) {
  memphis::open_standard_streams();
  memphis::configure_log();
  // A file that may not grow is an error to whoever writes it, as a full disk is.
  std::signal(SIGXFSZ, SIG_IGN);
  return memphis::run(argc, argv);
}
