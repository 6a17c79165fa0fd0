// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/run_directory.h"

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/store.h"
#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 4> kNames = {
    kRunConfigName, kMetricsName, kLockName, kNothingSavedName};
constexpr std::string_view kFirstLine =
    "# The config of this run as it was resolved. Each start writes it anew.\n";

bool begins_as_of_a_run(const fs::path& path) {
  const InputFile file(path);
  const std::vector<std::byte> bytes = file.beginning(kFirstLine.size());
  return bytes.empty() ||
         std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()) == kFirstLine;
}

}  // namespace

void require_own_files(const fs::path& run_dir) {
  std::error_code ignored;
  for (const std::string_view name : kNames) {
    const fs::path path = run_dir / name;
    const fs::file_status status = fs::status(path, ignored);
    if (fs::exists(status) && !fs::is_regular_file(status) &&
        !(name == kMetricsName && fs::is_character_file(status))) {
      throw ConfigError(
          fmt::format("{} is no file (a run has one of that name in run.dir); remove it, or choose "
                      "another run.dir",
                      path.string()));
    }
  }
  const fs::path path = run_dir / kRunConfigName;
  if (!fs::exists(path, ignored) || begins_as_of_a_run(path) ||
      fs::exists(run_dir / kNothingSavedName, ignored) || newest_step(run_dir) >= 0) {
    return;
  }
  throw ConfigError(fmt::format(
      "run.dir {} has a {} that no run wrote (each start writes the config as it was resolved "
      "there, "
      "and nothing else is overwritten); choose another run.dir, or give that file another name",
      run_dir.string(),
      kRunConfigName));
}

void write_run_config(const fs::path& run_dir, const Config& config) {
  write_text_atomically(run_dir / kRunConfigName, std::string(kFirstLine) + to_yaml(config));
}

void remove_left_files(const fs::path& run_dir) {
  for (const std::string_view name : kNames) {
    for (const fs::path& path : remove_left_siblings(run_dir / name)) {
      log_warning("removed {}, which a job left unfinished", path.string());
    }
  }
}

}  // namespace memphis
