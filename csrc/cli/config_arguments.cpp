// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/config/words.h"

namespace memphis {

void add_config_arguments(CLI::App& command, ConfigArguments& arguments) {
  command.add_option("config", arguments.file, "The config, a YAML file")->required();
  command.add_option("overrides",
                     arguments.overrides,
                     "section.key=value, as often as needed: takes the place of the file's value");
}

Config load_config_of_job(const ConfigArguments& arguments, World& world) {
  const std::unique_ptr<Communicator> all = create_group_of_all(world, "config");
  require_same(*all, "the config's name", arguments.file);
  std::string text;
  together(*all, "config.read", [&] {
    if (all->rank() == 0) {
      text = read_config(arguments.file);
    }
  });
  text = text_of_rank(*all, 0, text, "config.text");
  return parse_config(text, arguments.file, arguments.overrides, Check::machine, world.size());
}

CLI::Validator at_least(int least) {
  return CLI::Validator(
      [least](const std::string& text) {
        double value = 0;
        const bool number = CLI::detail::lexical_cast(text, value);  // or the conversion says so
        return number && !std::isfinite(value)
                   ? fmt::format("{} is no finite number; give {} or more", text, least)
               : number && value < least
                   ? fmt::format("{} is too small; give {} or more", text, least)
                   : std::string();
      },
      "");
}

CLI::Validator within(double least, double most) {
  return CLI::Validator(
      [least, most](const std::string& text) {
        double value = 0;
        const bool number = CLI::detail::lexical_cast(text, value);  // or the conversion says so
        return number && !(value >= least && value <= most)
                   ? fmt::format(
                         "{} is not between {} and {}; give a number that is", text, least, most)
                   : std::string();
      },
      "");
}

CLI::Validator one_of(const std::vector<std::string>& words) {
  return CLI::Validator(
      [words](const std::string& text) {
        const std::vector<std::string_view> known(words.begin(), words.end());
        if (std::find(known.begin(), known.end(), text) != known.end()) {
          return std::string();
        }
        const std::string_view nearest = nearest_word(text, known);
        return fmt::format(
            "{} is not known (it is one of {}); {}",
            text,
            join_words(known, "and"),
            nearest.empty() ? "give one of these" : fmt::format("did you mean {}?", nearest));
      },
      "");
}

}  // namespace memphis
