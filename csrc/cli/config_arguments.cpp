// SPDX-License-Identifier: Apache-2.0
#include <string>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"

namespace memphis {

void add_config_arguments(CLI::App& command, ConfigArguments& arguments) {
  command.add_option("config", arguments.file, "The config, a YAML file")->required();
  command.add_option("overrides",
                     arguments.overrides,
                     "section.key=value, as often as needed: takes the place of the file's value");
}

CLI::Validator at_least(int least) {
  return CLI::Validator(
      [least](const std::string& text) {
        double value = 0;
        const bool number = CLI::detail::lexical_cast(text, value);  // or the conversion says so
        return number && value < least
                   ? fmt::format("{} is too small; give {} or more", text, least)
                   : std::string();
      },
      "");
}

}  // namespace memphis
