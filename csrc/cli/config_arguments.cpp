// SPDX-License-Identifier: Apache-2.0
#include "csrc/cli/commands.h"

namespace memphis {

void add_config_arguments(CLI::App& command, ConfigArguments& arguments) {
  command.add_option("config", arguments.file, "The config, a YAML file")->required();
  command.add_option("overrides",
                     arguments.overrides,
                     "section.key=value, as often as needed: takes the place of the file's value");
}

}  // namespace memphis
