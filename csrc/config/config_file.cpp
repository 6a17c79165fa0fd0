// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/config_file.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "csrc/config/words.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxListed = 8;

// The YAML files of `directory`, by name, as a user there would write their paths.
std::vector<std::string> configs_of(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(directory.empty() ? "." : directory, error), end;
       !error && entry != end;
       entry.increment(error)) {
    const std::string extension = entry->path().extension().string();
    if (extension == ".yaml" || extension == ".yml") {
      names.push_back((directory / entry->path().filename()).string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Which of `paths` has the file name nearest to that of `file`; empty if none is near.
std::string nearest_of(const fs::path& file, const std::vector<std::string>& paths) {
  std::vector<std::string> stems;
  for (const std::string& path : paths) {
    stems.push_back(fs::path(path).stem().string());
  }
  const std::string wanted = file.stem().string();
  const std::string_view nearest = nearest_word(wanted, {stems.begin(), stems.end()});
  for (std::size_t i = 0; i < stems.size(); ++i) {
    if (!nearest.empty() && stems[i] == nearest) {
      return paths[i];
    }
  }
  return {};
}

std::string advice(const fs::path& file) {
  std::vector<std::string> known = configs_of(file.parent_path());
  const std::vector<std::string> shipped = configs_of("configs");
  if (file.parent_path() != "configs") {
    known.insert(known.end(), shipped.begin(), shipped.end());
  }
  if (const std::string nearest = nearest_of(file, known); !nearest.empty()) {
    return "did you mean " + nearest + "?";
  }
  if (known.empty()) {
    return "give the path of a YAML file";
  }
  std::vector<std::string_view> listed(known.begin(), known.end());
  if (listed.size() > kMaxListed) {
    listed.resize(kMaxListed);
    listed.emplace_back("others");
  }
  return "there are " + join_words(listed, "and");
}

}  // namespace

void require_config_file(const fs::path& file) {
  std::error_code error;
  if (fs::status(file, error).type() == fs::file_type::not_found) {
    throw ConfigError("there is no config " + file.string() + " (seen from " +
                      fs::current_path(error).string() + "); " + advice(file));
  }
}

}  // namespace memphis
