// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/report/page.h"
#include "csrc/report/run_history.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

// Where the page goes, behind links. It takes the place of an earlier page and of nothing else: not of
// a run's own file, nor of a device, which a rename would replace.
fs::path place_of_page(const std::string& out) {
  std::error_code ignored;
  if (!fs::exists(out, ignored)) {
    return out;
  }
  if (!fs::is_regular_file(out, ignored)) {
    throw ConfigError(fmt::format(
        "-o {} is there and is no file (the page is renamed into its place); name a file", out));
  }
  const std::string text = read_text(out);
  if (!text.empty() && !text.starts_with("<!DOCTYPE html>")) {
    throw ConfigError(fmt::format(
        "-o {} is there and is no page (nothing else is overwritten); name another", out));
  }
  return fs::canonical(out);
}

}  // namespace

void add_report_command(CLI::App& program) {
  struct Arguments {
    std::vector<std::string> runs;
    std::string out = "report.html";
  };
  CLI::App* command =
      program.add_subcommand("report", "Shows runs on one HTML page: plots, and what stands out");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("runs", arguments->runs, "Run directories, laid over each other")->required();
  command->add_option("-o,--out", arguments->out, "The page");
  command->callback([arguments] {
    const fs::path out = place_of_page(arguments->out);
    std::vector<RunHistory> runs;
    for (const std::string& dir : arguments->runs) {
      runs.push_back(read_run(dir));
    }
    write_text_atomically(out, report_page(runs));
    log_info("wrote {}", arguments->out);
  });
}

}  // namespace memphis
