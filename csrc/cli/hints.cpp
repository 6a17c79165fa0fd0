// SPDX-License-Identifier: Apache-2.0
#include "csrc/cli/hints.h"

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/config/config.h"
#include "csrc/config/schema.h"
#include "csrc/config/words.h"

namespace memphis {
namespace {

std::vector<std::string_view> views_of(const std::vector<std::string>& names) {
  return {names.begin(), names.end()};
}

std::vector<std::string> commands_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

std::vector<std::string> options_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      names.push_back("--" + name);
    }
  }
  return names;
}

bool takes_config(const CLI::App& app) {
  return app.get_option_no_throw("overrides") != nullptr;
}

// The innermost command that the arguments name.
const CLI::App& innermost(const CLI::App& program) {
  const CLI::App* app = &program;
  while (!app->get_subcommands().empty()) {
    app = app->get_subcommands().front();
  }
  return *app;
}

// "memphis bench step"
std::string full_name(const CLI::App& app) {
  return app.get_parent() == nullptr ? app.get_name()
                                     : full_name(*app.get_parent()) + " " + app.get_name();
}

// `--learning-rate` or `--optimizer.learning_rate`, which other programs have: the key that is meant,
// empty if there is none.
std::string key_of(const std::string& option) {
  std::string name = option.substr(0, option.find('='));
  name.erase(0, name.find_first_not_of('-'));
  std::replace(name.begin(), name.end(), '-', '_');
  Config config;
  const std::vector<Field> fields = fields_of(config);
  std::vector<std::string_view> keys;
  for (const Field& field : fields) {
    if (field.path() == name || field.key == name) {
      return field.path();
    }
    keys.push_back(field.key);
  }
  const std::string_view nearest = nearest_word(name, keys);
  for (const Field& field : fields) {
    if (!nearest.empty() && field.key == nearest) {
      return field.path();
    }
  }
  return {};
}

std::string explain_extra(const CLI::App& app, const std::string& argument) {
  if (!argument.starts_with("-")) {
    const std::vector<std::string> commands = commands_of(app);
    if (!commands.empty()) {
      const std::string_view nearest = nearest_word(argument, views_of(commands));
      return fmt::format(
          "{} has no command {} ({}); {}",
          full_name(app),
          argument,
          "it has " + join_words(views_of(commands), "and"),
          nearest.empty() ? "use one of these" : fmt::format("did you mean {}?", nearest));
    }
    return fmt::format(
        "{} is one argument more than {} takes (an argument with spaces needs quotes); "
        "`{} --help` says what it takes",
        argument,
        full_name(app),
        full_name(app));
  }
  const std::string option = argument.substr(0, argument.find('='));
  const std::vector<std::string> options = options_of(app);
  const std::string_view nearest = nearest_word(option, views_of(options));
  const std::string key = takes_config(app) ? key_of(option) : "";
  std::string advice = fmt::format("`{} --help` says what it takes", full_name(app));
  if (!nearest.empty()) {
    advice = fmt::format("did you mean {}?", nearest);
  } else if (!key.empty()) {
    const std::size_t equals = argument.find('=');
    advice = fmt::format("a config's key is given as in {}={}",
                         key,
                         equals == std::string::npos ? "VALUE" : argument.substr(equals + 1));
  }
  return fmt::format("{} has no option {} (it is misspelt, or another command's); {}",
                     full_name(app),
                     option,
                     advice);
}

}  // namespace

std::string explain(const CLI::App& program, const CLI::ParseError& error) {
  const CLI::App& app = innermost(program);
  const std::string help = full_name(app) + " --help";
  // What is left over explains what is missing: `generate RUN --promt TEXT` has no --prompt.
  for (const CLI::App* each = &app; each != nullptr; each = each->get_parent()) {
    for (const std::string& argument : each->remaining()) {
      if (argument.starts_with("-") || dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr ||
          !commands_of(app).empty()) {
        return explain_extra(app, argument);
      }
    }
  }
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    const std::vector<std::string> commands = commands_of(app);
    if (!commands.empty()) {
      return fmt::format("{} is given no command (it has {}); `{}` says what they do",
                         full_name(app),
                         join_words(views_of(commands), "and"),
                         help);
    }
    if (takes_config(app) && app.get_option_no_throw("config")->empty()) {
      return fmt::format(
          "{} is given no config (the YAML file that says what to train); use it as in "
          "`{} configs/smoke_cpu.yaml`",
          full_name(app),
          full_name(app));
    }
  }
  return fmt::format("{}; `{}` says what it takes", error.what(), help);
}

std::optional<std::string> explain_command(const CLI::App& program, const std::string& word) {
  const std::vector<std::string> commands = commands_of(program);
  if (word.starts_with("-") ||
      std::find(commands.begin(), commands.end(), word) != commands.end()) {
    return std::nullopt;
  }
  std::error_code ignored;
  const std::string extension = std::filesystem::path(word).extension().string();
  if (extension == ".yaml" || extension == ".yml" ||
      std::filesystem::is_regular_file(word, ignored)) {
    return fmt::format(
        "{} is a config, and stands where a command does (what is to be done with it?); "
        "use `memphis train {}`, or plan in the place of train",
        word,
        word);
  }
  return explain_extra(program, word);
}

}  // namespace memphis
