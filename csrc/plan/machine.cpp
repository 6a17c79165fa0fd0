// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/machine.h"

#include <algorithm>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/config/schema.h"
#include "csrc/config/words.h"
#include "csrc/config/yaml_tree.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMostRanks = std::int64_t{1} << 31;
constexpr double kMostOfAnything = 1e9;

Number above_zero(double& value) {
  return {&value, Number::Low::above, 0, Number::High::at_most, kMostOfAnything};
}
Number zero_or_more(double& value) {
  return {&value, Number::Low::at_least, 0, Number::High::at_most, kMostOfAnything};
}

std::vector<Field> fields_of(Machine& m) {
  const auto positive = [](std::int64_t& value) { return Integer{&value, 1, kMostRanks}; };
  std::vector<Field> fields = {
      {"machine", "name", Text{&m.name}},
      {"machine", "memory_gib", above_zero(m.memory_gib)},
      {"products", "peak_bf16_tflops", zero_or_more(m.peak_bf16_tflops)},
      {"products", "peak_fp8_tflops", zero_or_more(m.peak_fp8_tflops)},
      {"products", "peak_f32_tflops", zero_or_more(m.peak_f32_tflops)},
      {"products", "large_bf16_tflops", zero_or_more(m.large_bf16_tflops)},
      {"products", "large_fp8_tflops", zero_or_more(m.large_fp8_tflops)},
      {"products", "large_f32_tflops", zero_or_more(m.large_f32_tflops)},
      {"products", "measured_gflop", IntegerList{&m.measured_gflop, 0, kMostRanks}},
      {"products", "measured_per_mille", IntegerList{&m.measured_per_mille, 1, 1500}},
      {"products", "multiprocessors", Integer{&m.multiprocessors, 0, 4096}},
      {"memory", "gb_per_second", above_zero(m.memory_gb_per_second)},
      {"memory",
       "copy_share",
       Number{&m.copy_share, Number::Low::above, 0, Number::High::at_most, 1}},
  };
  for (const auto& [section, level] : {std::pair<std::string_view, LinkLevel*>("node", &m.node),
                                       std::pair<std::string_view, LinkLevel*>("pod", &m.pod),
                                       {"cluster", &m.cluster}}) {
    fields.push_back({section, "ranks", positive(level->ranks)});
    fields.push_back({section, "latency_us", zero_or_more(level->latency_us)});
    fields.push_back({section, "gb_per_second", above_zero(level->gb_per_second)});
    fields.push_back({section, "rows_gb_per_second", above_zero(level->rows_gb_per_second)});
  }
  fields.push_back({"failures", "rank_hours", above_zero(m.rank_hours_between_failures)});
  fields.push_back({"failures", "restart_seconds", zero_or_more(m.restart_seconds)});
  fields.push_back({"failures", "save_gb_per_second", above_zero(m.save_gb_per_second)});
  fields.push_back({"power", "idle_watts", zero_or_more(m.idle_watts)});
  fields.push_back({"power", "busy_watts", above_zero(m.busy_watts)});
  return fields;
}

bool is_optional(const Field& field) {
  return std::holds_alternative<IntegerList>(field.target);
}

[[noreturn]] void refuse_unknown(const YamlNode& key,
                                 std::string_view what,
                                 std::string_view owner,
                                 const std::vector<std::string_view>& known) {
  const std::string_view nearest = nearest_word(key.text, known);
  throw ConfigError(fmt::format("{}: unknown {} {} ({} has no such {}); {}",
                                key.place,
                                what,
                                key.text,
                                owner,
                                what,
                                nearest.empty() ? "there are " + join_words(known, "and")
                                                : fmt::format("did you mean {}?", nearest)));
}

void require_map(const YamlNode& node, std::string_view what) {
  if (node.kind != YamlNode::Kind::map) {
    throw ConfigError(fmt::format("{}: {} is {} (it is a map of keys); write `key: value` in it",
                                  node.place,
                                  what,
                                  describe(node)));
  }
}

class Reader {
 public:
  Reader(std::string_view name, Machine& machine) : name_(name), fields_(fields_of(machine)) {}

  void read(const YamlNode& root) {
    if (root.kind == YamlNode::Kind::null) {
      throw ConfigError(fmt::format(
          "{}: the machine's file is empty (no rate or link has a default); start with a copy of "
          "one of configs/machines",
          name_));
    }
    require_map(root, "the machine's file");
    std::vector<std::string_view> sections;
    for (const Field& field : fields_) {
      if (sections.empty() || sections.back() != field.section) {
        sections.push_back(field.section);
      }
    }
    for (std::size_t i = 0; i < root.keys.size(); ++i) {
      const YamlNode& key = root.keys[i];
      if (std::find(sections.begin(), sections.end(), key.text) == sections.end()) {
        refuse_unknown(key, "section", "a machine", sections);
      }
      take_once(key, key.text);
      require_map(root.items[i], key.text);
      read_section(key.text, root.items[i]);
    }
    for (const Field& field : fields_) {
      if (!is_optional(field) && !places_.contains(field.path())) {
        throw ConfigError(fmt::format(
            "{}: {} is missing (a machine has no default for it); give it", name_, field.path()));
      }
    }
  }

  const std::string& place(const std::string& path) const {
    const auto found = places_.find(path);
    return found == places_.end() ? name_ : found->second;
  }

 private:
  void read_section(const std::string& section, const YamlNode& body) {
    std::vector<std::string_view> keys;
    for (const Field& field : fields_) {
      if (field.section == section) {
        keys.push_back(field.key);
      }
    }
    for (std::size_t i = 0; i < body.keys.size(); ++i) {
      const YamlNode& key = body.keys[i];
      if (std::find(keys.begin(), keys.end(), key.text) == keys.end()) {
        refuse_unknown(key, "key", section, keys);
      }
      const std::string path = section + "." + key.text;
      take_once(key, path);
      assign(*std::find_if(fields_.begin(),
                           fields_.end(),
                           [&](const Field& field) { return field.path() == path; }),
             body.items[i]);
    }
  }
  void take_once(const YamlNode& key, const std::string& path) {
    if (!places_.emplace(path, key.place).second) {
      throw ConfigError(fmt::format("{}: {} is given twice (first at {}); keep one of the two",
                                    key.place,
                                    path,
                                    places_[path]));
    }
  }

  std::string name_;
  std::vector<Field> fields_;
  std::map<std::string, std::string> places_;
};

void check(const Machine& m, const Reader& reader) {
  const auto expect = [&](bool holds, const std::string& path, const std::string& text) {
    if (!holds) {
      throw ConfigError(reader.place(path) + ": " + text);
    }
  };
  for (const auto& [kind, peak, large] :
       {std::tuple("bf16", m.peak_bf16_tflops, m.large_bf16_tflops),
        std::tuple("fp8", m.peak_fp8_tflops, m.large_fp8_tflops),
        std::tuple("f32", m.peak_f32_tflops, m.large_f32_tflops)}) {
    expect(
        large <= peak && (peak == 0) == (large == 0),
        fmt::format("products.large_{}_tflops", kind),
        fmt::format("products.large_{0}_tflops is {1} beside a peak of {2} (what is measured lies "
                    "below the peak, and both are 0 where there are no such products); use a "
                    "value up to {2}",
                    kind,
                    large,
                    peak));
  }
  expect(m.peak_bf16_tflops + m.peak_f32_tflops > 0,
         "products.peak_bf16_tflops",
         "products.peak_bf16_tflops and products.peak_f32_tflops are 0 (a step is made of products "
         "in one of them); give one");
  expect(
      m.measured_gflop.size() == m.measured_per_mille.size() &&
          std::is_sorted(m.measured_gflop.begin(), m.measured_gflop.end()),
      "products.measured_gflop",
      fmt::format("products.measured_gflop has {} sizes and products.measured_per_mille {} rates "
                  "(they are one table, by ascending size); give as many of both",
                  m.measured_gflop.size(),
                  m.measured_per_mille.size()));
  expect(m.pod.ranks % m.node.ranks == 0 && m.cluster.ranks >= m.pod.ranks,
         "pod.ranks",
         fmt::format("pod.ranks is {} (a pod is made of whole nodes of {} ranks, and a cluster of "
                     "{} holds one); use a multiple of {}",
                     m.pod.ranks,
                     m.node.ranks,
                     m.cluster.ranks,
                     m.node.ranks));
  expect(m.idle_watts <= m.busy_watts,
         "power.idle_watts",
         fmt::format("power.idle_watts is {} (at rest a rank takes no more than the {} of "
                     "power.busy_watts); use a value up to {}",
                     m.idle_watts,
                     m.busy_watts,
                     m.busy_watts));
}

}  // namespace

Machine parse_machine(std::string_view text, std::string_view name) {
  Machine machine;
  Reader reader(name, machine);
  reader.read(parse_yaml(text, name));
  check(machine, reader);
  return machine;
}

std::string to_yaml(const Machine& machine) {
  Machine copy = machine;
  return to_yaml(fields_of(copy));
}

fs::path find_machine(const std::string& name_or_file, const std::vector<fs::path>& folders) {
  std::error_code error;
  const fs::path given = name_or_file;
  if (given.has_parent_path() || given.extension() == ".yaml") {
    if (fs::exists(given, error)) {
      return given;
    }
  }
  std::set<std::string> names;
  for (const fs::path& folder : folders) {
    fs::path file = folder / (name_or_file + ".yaml");
    if (!name_or_file.empty() && fs::exists(file, error)) {
      return file;
    }
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
      if (entry->path().extension() == ".yaml") {
        names.insert(entry->path().stem().string());
      }
    }
  }
  if (fs::is_regular_file(given, error)) {
    return given;
  }
  const std::vector<std::string_view> known(names.begin(), names.end());
  const std::string_view nearest = nearest_word(given.stem().string(), known);
  throw ConfigError(
      fmt::format("there is no machine {} (it is a name in configs/machines, or a file); {}",
                  quote(name_or_file),
                  !nearest.empty() ? fmt::format("did you mean {}?", nearest)
                  : known.empty()  ? "give the path of a YAML file"
                                   : "there are " + join_words(known, "and")));
}

Machine load_machine(const fs::path& file) {
  try {
    return parse_machine(read_text(file, kMaxYamlBytes), file.string());
  } catch (const DataError& error) {
    throw ConfigError(error.what());  // to the user it is a file of the command line
  }
}

}  // namespace memphis
