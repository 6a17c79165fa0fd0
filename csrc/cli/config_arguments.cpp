// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <charconv>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/config/scalar.h"
#include "csrc/config/words.h"
#include "csrc/config/yaml_tree.h"
#include "csrc/core/error.h"

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

void check_values(CLI::App& program) {
  for (CLI::Option* option : program.get_options()) {
    const std::string type = option->get_type_name();
    if (option->get_expected_max() == 0) {
      continue;  // a flag
    }
    if (!option->check_lname("prompt")) {
      option->check([name = option->get_name()](const std::string& text) {
        if (text.empty()) {
          throw ConfigError(fmt::format(
              "{} is given an empty text (which names nothing); give one that is not, or leave it "
              "out",
              name));
        }
        return std::string();
      });
    }
    if (type == "INT" || type == "UINT" || type == "FLOAT") {
      option->check(
          [name = option->get_name(), is_whole = type != "FLOAT"](const std::string& text) {
            YamlNode node;
            node.kind = YamlNode::Kind::scalar;
            node.place = fmt::format("argument '{}'", text);
            node.text = text;
            is_whole ? static_cast<void>(parse_integer(node, name))
                     : static_cast<void>(parse_number(node, name));
            return std::string();
          });
    }
  }
  for (CLI::App* command : program.get_subcommands([](CLI::App*) { return true; })) {
    check_values(*command);
  }
}

CLI::Validator whole(std::int64_t least, std::int64_t most) {
  return CLI::Validator(
      [least, most](const std::string& text) {
        std::int64_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error == std::errc::invalid_argument || end != text.data() + text.size()) {
          return std::string();  // no whole number: check_values says so
        }
        const bool beyond = error == std::errc::result_out_of_range;
        if (beyond ? text.starts_with('-') : value < least) {
          return fmt::format("{} is too small; give {} or more", text, least);
        }
        return beyond || value > most ? fmt::format("{} is too large; give at most {}", text, most)
                                      : std::string();
      },
      "");
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
