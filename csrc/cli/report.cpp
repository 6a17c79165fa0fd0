// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/cli/commands.h"
#include "csrc/cli/output_file.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/report/page.h"
#include "csrc/report/run_history.h"

namespace memphis {

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
    require_may_write({.argument = "-o",
                       .path = arguments->out,
                       .what = "page",
                       .is_one = [](std::string_view beginning) {
                         return beginning.starts_with("<!DOCTYPE html>");
                       }});
    std::vector<RunHistory> runs;
    for (const std::string& dir : arguments->runs) {
      runs.push_back(read_run(dir));
    }
    write_output([&] { write_text_atomically(arguments->out, report_page(runs)); });
    log_info("wrote {}", arguments->out);
  });
}

}  // namespace memphis
