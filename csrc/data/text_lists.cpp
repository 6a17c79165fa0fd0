// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_lists.h"

#include <algorithm>
#include <cstddef>
#include <string_view>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/data/name_list.h"

namespace memphis {
namespace {

// A loss on text that was trained on says nothing about other text.
void exclude(TextFiles& list, const TextFiles& validation, std::vector<std::string>& said) {
  std::vector<std::filesystem::path> shared;
  const auto in_validation = [&](const TextFile& file) {
    const auto& files = validation.files;
    const auto found = std::lower_bound(
        files.begin(), files.end(), file, [](const TextFile& a, const TextFile& b) {
          return a.path < b.path;
        });
    if (found == files.end() || found->path != file.path) {
      return false;
    }
    if (found->origin == TextFile::Origin::named && file.origin == TextFile::Origin::named) {
      throw ConfigError("data.train and data.validation both name " + file.path.string() +
                        " (a loss on text that was trained on says nothing of other text); remove "
                        "it from one of them");
    }
    shared.push_back(file.path);
    return true;
  };
  std::erase_if(list.files, in_validation);
  if (!shared.empty()) {
    said.push_back(
        fmt::format("data.train: {} files are in data.validation too and are not trained on: {}",
                    shared.size(),
                    list_of(shared)));
  }
}

std::vector<TextPart> parts_of(std::string_view key,
                               const std::vector<std::string>& paths,
                               const std::vector<DataEntry>& entries,
                               const std::filesystem::path& run_dir) {
  if (entries.empty()) {
    return {{.key = std::string(key), .name = {}, .list = list_text_files(key, paths, run_dir)}};
  }
  std::vector<TextPart> parts;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::string own = fmt::format("{}[{}]", key, i);
    parts.push_back({.key = own,
                     .name = name_of_entry(paths[i], entries[i]),
                     .weight = entries[i].weight,
                     .list = list_text_files(own, {paths[i]}, run_dir)});
  }
  return parts;
}

std::vector<TextPart> training_parts(const DataConfig& config,
                                     const std::vector<std::string>& default_roots,
                                     const std::filesystem::path& run_dir) {
  if (!config.train.empty()) {
    return parts_of("data.train", config.train, config.mixture, run_dir);
  }
  if (default_roots.empty()) {
    throw ConfigError(
        "data.train is not given (the default are memphis's own sources, which do not lie where "
        "this program was built); name files, directories or patterns, as in data.train=[a.txt]");
  }
  return {{.key = "data.train",
           .name = {},
           .list = list_text_files("the default of data.train", default_roots, run_dir)}};
}

}  // namespace

TextLists list_texts(const DataConfig& config,
                     const std::vector<std::string>& default_roots,
                     const std::filesystem::path& run_dir) {
  TextLists lists{
      .train = training_parts(config, default_roots, run_dir), .validation = {}, .said = {}};
  if (!config.validation.empty()) {
    lists.validation =
        parts_of("data.validation", config.validation, config.validation_sets, run_dir);
    for (TextPart& part : lists.train) {
      for (const TextPart& held : lists.validation) {
        exclude(part.list, held.list, lists.said);
      }
    }
  }
  return lists;
}

}  // namespace memphis
