// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/config/reference.h"
#include "csrc/train/metric_keys.h"

namespace memphis {
namespace {

constexpr const char* kMarkdownHelp = "All of it, as the file in docs/ has it";

void add_docs_config(CLI::App& docs) {
  struct Arguments {
    std::string name;
    bool markdown = false;
  };
  CLI::App* command =
      docs.add_subcommand("config", "The keys of a config, their ranges and defaults");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("name", arguments->name, "A section or a section.key; by default all");
  command->add_flag("--markdown", arguments->markdown, kMarkdownHelp);
  command->callback([arguments] {
    fmt::print("{}", arguments->markdown ? config_reference() : describe_keys(arguments->name));
  });
}

void add_docs_metrics(CLI::App& docs) {
  CLI::App* command = docs.add_subcommand("metrics", "The keys of metrics.jsonl, and their units");
  auto markdown = std::make_shared<bool>(false);
  command->add_flag("--markdown", *markdown, kMarkdownHelp);
  command->callback(
      [markdown] { fmt::print("{}", *markdown ? metrics_reference() : describe_metrics()); });
}

}  // namespace

void add_docs_command(CLI::App& program) {
  CLI::App* docs =
      program.add_subcommand("docs", "Says what the keys of a config and of metrics.jsonl mean");
  docs->require_subcommand(1);
  add_docs_config(*docs);
  add_docs_metrics(*docs);
}

}  // namespace memphis
