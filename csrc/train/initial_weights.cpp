// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/initial_weights.h"

#include <string>
#include <string_view>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/folder_tokenizer.h"
#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/comm/together.h"
#include "csrc/config/resume_rules.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

// The keys that say how a folder's weights are drawn or named are the run's own.
bool is_of_weights(const ConfigChange& change) {
  const std::string_view key = change.rule->key;
  return change.rule->on_resume == OnResume::refused && key.starts_with("model.") &&
         !key.starts_with("model.init") && key != "model.router_init_std";
}

void require_same_model(const std::filesystem::path& folder,
                        const ModelConfig& stored,
                        const Config& config) {
  Config with_stored = config;
  with_stored.model = stored;
  std::vector<std::string> what;
  std::vector<std::string> set;
  for (const ConfigChange& change : changes_on_resume(with_stored, config)) {
    if (is_of_weights(change)) {
      what.push_back(fmt::format("{} is {} and there {}", change.rule->key, change.is, change.was));
      set.push_back(fmt::format("{}={}", change.rule->key, change.was));
    }
  }
  if (!what.empty()) {
    throw ConfigError(fmt::format(
        "run.init_from {} is of another model than the config's: {} (weights do not run under "
        "arithmetic other than their own); set {}, or name another folder",
        folder.string(),
        fmt::join(what, "; "),
        fmt::join(set, " ")));
  }
}

// Other ids than those that the weights were trained on stand for other text.
void warn_of_tokenizer(const std::filesystem::path& folder, const Config& config) {
  const FolderTokenizer tokenizer = find_tokenizer(folder, config.model.vocab_size);
  if (!tokenizer.is_byte && config.data.tokenizer == "byte") {
    const std::string files = describe_files(folder, tokenizer);
    log_warning("run.init_from {} has {} and data.tokenizer is byte: its weights know other tokens",
                folder.string(),
                files.empty() ? "no tokenizer of bytes" : "the tokenizer " + files);
  }
}

}  // namespace

std::optional<StoredWeights> open_initial_weights(const Config& config, Communicator& all_host) {
  if (config.run.init_from.empty()) {
    return std::nullopt;
  }
  // The first rank finds the folder for all: a run's newest checkpoint is read back whole for it.
  std::string found;
  together(all_host, "init_from.find", [&] {
    if (all_host.rank() == 0) {
      found = find_model_folder(config.run.init_from).string();
    }
  });
  const std::filesystem::path folder = text_of_rank(all_host, 0, found, "init_from.folder");
  std::optional<StoredWeights> stored;
  together(all_host, "init_from.open", [&] {
    require_same_model(folder, read_hf_config(folder / "config.json"), config);
    stored.emplace(folder, config.model);
    if (all_host.rank() == 0) {
      warn_of_tokenizer(folder, config);
    }
  });
  return stored;
}

}  // namespace memphis
