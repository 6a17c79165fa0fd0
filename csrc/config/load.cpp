// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/load.h"

#include <algorithm>
#include <map>
#include <utility>
#include <variant>

#include "csrc/config/config_file.h"
#include "csrc/config/machine.h"
#include "csrc/config/path_text.h"
#include "csrc/config/presets.h"
#include "csrc/config/schema.h"
#include "csrc/config/sources.h"
#include "csrc/config/validate.h"
#include "csrc/config/words.h"
#include "csrc/config/yaml_tree.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

// A value that was given, not yet read, and the field that it is for.
struct Given {
  std::string path;
  YamlNode node;
};

class Keys {
 public:
  Keys() : fields_(fields_of(config_)) {}

  const Field& field(const std::string& path) const {
    return *std::find_if(
        fields_.begin(), fields_.end(), [&](const Field& each) { return each.path() == path; });
  }

  std::vector<std::string_view> sections() const {
    std::vector<std::string_view> names;
    for (const Field& field : fields_) {
      if (names.empty() || names.back() != field.section) {
        names.push_back(field.section);
      }
    }
    return names;
  }

  std::vector<std::string_view> keys_of(std::string_view section) const {
    std::vector<std::string_view> names;
    for (const Field& field : fields_) {
      if (field.section == section) {
        names.push_back(field.key);
      }
    }
    return names;
  }

  void require_section(const std::string& section, const std::string& place) const {
    const std::vector<std::string_view> known = sections();
    if (std::find(known.begin(), known.end(), section) == known.end()) {
      const std::string_view nearest = nearest_word(section, known);
      throw ConfigError(place + ": unknown section " + section +
                        " (a config has no such section); " +
                        (nearest.empty() ? "the sections are " + join_words(known, "and")
                                         : "did you mean " + std::string(nearest) + "?"));
    }
  }

  void require_key(const std::string& section,
                   const std::string& key,
                   const std::string& place) const {
    const std::vector<std::string_view> known = keys_of(section);
    if (std::find(known.begin(), known.end(), key) != known.end()) {
      return;
    }
    throw ConfigError(place + ": unknown key " + section + "." + key + " (" + section +
                      " has no such key); " + advice(section, key, known));
  }

 private:
  std::string advice(const std::string& section,
                     const std::string& key,
                     const std::vector<std::string_view>& known) const {
    if (const std::string_view nearest = nearest_word(key, known); !nearest.empty()) {
      return "did you mean " + section + "." + std::string(nearest) + "?";
    }
    for (const Field& field : fields_) {
      if (field.key == key) {
        return "did you mean " + field.path() + "?";
      }
    }
    return "the keys of " + section + " are " + join_words(known, "and");
  }

  Config config_;
  std::vector<Field> fields_;
};

// The keys of one map, each of which must be given once.
class Once {
 public:
  void require(const YamlNode& key, const std::string& path) {
    const auto [first, is_new] = lines_.emplace(path, key.line);
    if (!is_new) {
      throw ConfigError(key.place + ": " + path + " is given twice (first on line " +
                        std::to_string(first->second) + "); keep one of the two");
    }
  }

 private:
  std::map<std::string, int> lines_;
};

std::vector<Given> read_file(std::string_view text, std::string_view name, const Keys& keys) {
  const YamlNode root = parse_yaml(text, name);
  if (root.kind == YamlNode::Kind::null) {
    throw ConfigError(std::string(name) +
                      ": the config is empty (model and schedule have no default); give at least "
                      "these sections");
  }
  if (root.kind != YamlNode::Kind::map) {
    throw ConfigError(root.place + ": the config is " + describe(root) +
                      " (it is a map of sections); start with `model:`");
  }
  std::vector<Given> given;
  Once once;
  for (std::size_t i = 0; i < root.keys.size(); ++i) {
    const std::string& section = root.keys[i].text;
    const YamlNode& body = root.items[i];
    keys.require_section(section, root.keys[i].place);
    once.require(root.keys[i], section);
    if (body.kind != YamlNode::Kind::map) {
      throw ConfigError(body.place + ": " + section + " is " + describe(body) +
                        " (a section is a map of keys); write `key: value` lines below it");
    }
    for (std::size_t j = 0; j < body.keys.size(); ++j) {
      const std::string& key = body.keys[j].text;
      const std::string path = section + "." + key;
      keys.require_key(section, key, body.keys[j].place);
      once.require(body.keys[j], path);
      given.push_back({path, body.items[j]});
    }
  }
  return given;
}

std::vector<Given> read_overrides(const std::vector<std::string>& overrides, const Keys& keys) {
  std::vector<Given> given;
  for (const std::string& argument : overrides) {
    const std::string place = "argument '" + argument + "'";
    const std::size_t equals = argument.find('=');
    if (equals == std::string::npos) {
      throw ConfigError(
          place + ": no '=' (an override is section.key=value); put it between key and value");
    }
    const std::string path = argument.substr(0, equals);
    const std::string value = argument.substr(equals + 1);
    if (path.ends_with(' ') || path.starts_with(' ')) {
      throw ConfigError(place +
                        ": a space stands around the key (an override is section.key=value); "
                        "remove it");
    }
    const std::size_t dot = path.find('.');
    if (dot == std::string::npos || dot == 0 || dot + 1 == path.size()) {
      throw ConfigError(place + ": '" + path +
                        "' names no key (an override is section.key=value); write both words, as "
                        "in run.seed=2");
    }
    const std::string section = path.substr(0, dot);
    keys.require_section(section, place);
    keys.require_key(section, path.substr(dot + 1), place);
    const auto same = [&](const Given& other) { return other.path == path; };
    if (const auto first = std::find_if(given.begin(), given.end(), same); first != given.end()) {
      throw ConfigError(place + ": " + path + " is given twice (first by " + first->node.place +
                        "); keep one of the two");
    }
    given.push_back({path, parse_yaml_argument(value, argument)});
    YamlNode& node = given.back().node;
    node.place = place;  // also of an empty value
    if (std::holds_alternative<Text>(keys.field(path).target) && !node.quoted &&
        node.kind == YamlNode::Kind::scalar && node.text != value) {
      throw ConfigError(place + ": " + path + " would be " + quote(node.text) +
                        " (without quotes YAML drops spaces and line ends); write it within the "
                        "argument as " +
                        quote(value) + ", or without them");
    }
  }
  return given;
}

// Paths as they are meant, once they are known to be scalars: what else there is, assign refuses.
void resolve_paths(std::vector<Given>& given, const Keys& keys, Check check) {
  const auto resolve_scalar = [&](YamlNode& node, const std::string& path) {
    if (node.kind == YamlNode::Kind::scalar) {
      node.text = check == Check::text ? unescape_path(node.text) : expand_path(node, path);
    }
  };
  for (auto& [path, node] : given) {
    if (!keys.field(path).names_paths()) {
      continue;
    }
    resolve_scalar(node, path);
    for (std::size_t i = 0; node.kind == YamlNode::Kind::sequence && i < node.items.size(); ++i) {
      YamlNode& item = node.items[i];
      const std::string item_path = path + "[" + std::to_string(i) + "]";
      resolve_scalar(item, item_path);
      for (std::size_t j = 0; item.kind == YamlNode::Kind::map && j < item.keys.size(); ++j) {
        if (item.keys[j].text == "path") {
          resolve_scalar(item.items[j], item_path + ".path");
        }
      }
    }
  }
}

// Earlier versions printed the list that they were not given.
void drop_lists_left_out(std::vector<Given>& given, const Keys& keys) {
  std::erase_if(given, [&](const Given& each) {
    const TextList* list = std::get_if<TextList>(&keys.field(each.path).target);
    return list != nullptr && !list->empty_means.empty() &&
           each.node.kind == YamlNode::Kind::sequence && each.node.items.empty();
  });
}

void assign_all(const std::vector<Given>& given, Config& config) {
  std::map<std::string, Field> by_path;
  for (Field& field : fields_of(config)) {
    by_path.emplace(field.path(), std::move(field));
  }
  for (const Given& value : given) {
    assign(by_path.at(value.path), value.node);
  }
}

void note_places(const std::vector<Given>& given, Sources& sources) {
  for (const auto& [path, node] : given) {
    sources.places[path] = node.place;
    for (std::size_t i = 0; i < node.items.size(); ++i) {
      sources.places[path + "[" + std::to_string(i) + "]"] = node.items[i].place;
    }
  }
}

}  // namespace

Config parse_config(std::string_view text,
                    std::string_view name,
                    const std::vector<std::string>& overrides,
                    Check check,
                    std::int64_t num_ranks) {
  const Keys keys;
  std::vector<Given> from_file = read_file(text, name, keys);
  std::vector<Given> from_arguments = read_overrides(overrides, keys);
  if (check == Check::text) {
    drop_lists_left_out(from_file, keys);
  }
  resolve_paths(from_file, keys, check);
  resolve_paths(from_arguments, keys, check);

  // Twice: which preset lies underneath is itself a key that the file or an argument gives.
  Config config;
  for (int pass = 0; pass < 2; ++pass) {
    if (!config.model.preset.empty()) {
      config.model = preset(config.model.preset);
    }
    assign_all(from_file, config);
    assign_all(from_arguments, config);
  }

  Sources sources{.name = std::string(name), .places = {}};
  note_places(from_file, sources);
  note_places(from_arguments, sources);
  resolve(config, sources, num_ranks);
  if (check != Check::text) {
    require_used(config, sources);
  }
  if (check == Check::machine) {
    check_machine(config, sources);
  }
  return config;
}

std::string read_config(const std::filesystem::path& file) {
  require_config_file(file);
  try {
    return read_text(file, kMaxYamlBytes);
  } catch (const DataError& error) {
    throw ConfigError(error.what());  // to the user it is the config that cannot be read
  }
}

Config load_config(const std::filesystem::path& file,
                   const std::vector<std::string>& overrides,
                   std::int64_t num_ranks) {
  return parse_config(read_config(file), file.string(), overrides, Check::machine, num_ranks);
}

std::string to_yaml(const Config& config) {
  Config copy = config;
  if (copy.schedule.decay != Decay::wsd) {
    copy.schedule.decay_steps = 0;  // is in no use, and would be refused with other schedule.steps
  }
  return to_yaml(fields_of(copy));
}

}  // namespace memphis
