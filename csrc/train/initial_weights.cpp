// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/initial_weights.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/folder_tokenizer.h"
#include "csrc/checkpoint/hf.h"
#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/model_state.h"
#include "csrc/checkpoint/store.h"
#include "csrc/comm/together.h"
#include "csrc/config/resume_rules.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
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

// Ids of a text that most tokenizers cut differently.
std::vector<std::int32_t> ids_of_sample(const Tokenizer& tokenizer) {
  return tokenizer.encode(
      "  The 1234567 quick-brown foxes don't jump\n\tover naïve na\u0308ive 漢字かな, "
      "\U0001f469\u200d\U0001f469 "
      "x=f(a[1]);  ");
}

// The tokenizer whose ids the weights of a folder that is no checkpoint know; null where it has
// none.
std::shared_ptr<const Tokenizer> open_folder_tokenizer(const std::filesystem::path& folder,
                                                       const FolderTokenizer& found) {
  if (found.is_byte) {
    return std::make_shared<const ByteTokenizer>();
  }
  return found.files.empty() ? nullptr : open_tokenizer(folder.string());
}

// What the folder's ids are of, where those of `own` are not the same: "the tokenizer ...".
std::string other_tokenizer(const std::filesystem::path& folder,
                            const FolderTokenizer& found,
                            const Tokenizer& own) {
  const std::filesystem::path manifest = folder / kManifestName;
  if (std::filesystem::exists(manifest)) {
    const std::string theirs =
        found.is_byte ? std::string(ByteTokenizer::kName)
                      : read_manifest(read_text(manifest), manifest).tokenizer_fingerprint;
    return theirs == own.fingerprint() ? "" : "a tokenizer of the fingerprint " + theirs;
  }
  const std::string files = describe_files(folder, found);
  const auto theirs = open_folder_tokenizer(folder, found);
  if (theirs == nullptr) {
    return own.kind() == ByteTokenizer::kName ? "no tokenizer of bytes" : "";
  }
  // Another file may be of the same tokenizer, in another form or written by another version.
  const bool same =
      theirs->fingerprint() == own.fingerprint() ||
      (theirs->vocab_size() == own.vocab_size() && ids_of_sample(*theirs) == ids_of_sample(own));
  return same ? "" : files.empty() ? "the tokenizer of bytes" : "the tokenizer " + files;
}

// Other ids than those that the weights were trained on stand for other text.
void warn_of_tokenizer(const std::filesystem::path& folder,
                       const Config& config,
                       const Tokenizer* tokenizer) {
  if (tokenizer == nullptr) {  // the run's ids stand for no known text either
    return;
  }
  const FolderTokenizer found = find_tokenizer(folder, config.model.vocab_size);
  try {
    const std::string other = other_tokenizer(folder, found, *tokenizer);
    if (!other.empty()) {
      log_warning(
          "run.init_from {} has {} and data.tokenizer is {} (fingerprint {}): its weights know "
          "other tokens",
          folder.string(),
          other,
          config.data.tokenizer,
          tokenizer->fingerprint());
    }
  } catch (const DataError& error) {
    log_warning(
        "run.init_from {} has a tokenizer that cannot be compared with data.tokenizer {}: {}",
        folder.string(),
        config.data.tokenizer,
        error.what());
  }
}

}  // namespace

std::optional<StoredWeights> open_initial_weights(const Config& config,
                                                  const Tokenizer* tokenizer,
                                                  Communicator& all_host,
                                                  const Verify& verify) {
  if (config.run.init_from.empty()) {
    return std::nullopt;
  }
  // The first rank finds the folder for all: a run's newest checkpoint is read back whole for it.
  std::string found;
  together(all_host, "init_from.find", [&] {
    if (all_host.rank() == 0) {
      found = find_model_folder(config.run.init_from, verify).string();
    }
  });
  const std::filesystem::path folder = text_of_rank(all_host, 0, found, "init_from.folder");
  std::optional<StoredWeights> stored;
  together(all_host, "init_from.open", [&] {
    require_same_model(folder, read_hf_config(folder / "config.json"), config);
    stored.emplace(folder, config.model);
    if (all_host.rank() == 0) {
      warn_of_tokenizer(folder, config, tokenizer);
    }
  });
  return stored;
}

}  // namespace memphis
