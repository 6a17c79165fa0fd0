// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/kept_tokenizer.h"

#include <algorithm>
#include <iterator>
#include <system_error>
#include <vector>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/file_calls.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

bool lies_in(const fs::path& folder, const std::vector<TokenizerFile>& files) {
  std::error_code ignored;
  const auto num_there = static_cast<std::size_t>(
      std::distance(fs::directory_iterator(folder, ignored), fs::directory_iterator()));
  return num_there == files.size() &&
         std::all_of(files.begin(), files.end(), [&](const TokenizerFile& file) {
           return fs::file_size(folder / file.name, ignored) == file.content.size() &&
                  read_text(folder / file.name, file.content.size()) == file.content;
         });
}

}  // namespace

fs::path kept_tokenizer(const fs::path& run_dir) {
  return run_dir / "tokenizer";
}

void keep_tokenizer(const fs::path& run_dir, const Tokenizer* tokenizer) {
  const fs::path folder = kept_tokenizer(run_dir);
  const std::vector<TokenizerFile> files =
      tokenizer == nullptr ? std::vector<TokenizerFile>() : tokenizer->files();
  std::error_code ignored;
  if (files.empty() ? !fs::exists(folder, ignored) : lies_in(folder, files)) {
    return;
  }
  const auto require_done = [&](int error) {
    if (error != 0) {
      throw PreflightError("cannot keep the tokenizer in " + folder.string() + " (" +
                           system_reason(error) + "); fix permissions, or choose another run.dir");
    }
  };
  fs::path unfinished = folder;
  unfinished += ".tmp";
  require_done(remove_tree(unfinished));  // of a process that was killed
  if (!files.empty()) {
    constexpr mode_t kDirectoryMode = 0750;  // as a checkpoint's
    require_done(make_directory(unfinished, kDirectoryMode));
    for (const TokenizerFile& file : files) {
      write_text_atomically(unfinished / file.name, file.content);
    }
  }
  require_done(remove_tree(folder));
  if (!files.empty()) {
    require_done(rename_path(unfinished, folder));
    sync_directory(run_dir);
  }
}

std::shared_ptr<const Tokenizer> open_tokenizer_of_run(const std::string& name,
                                                       const std::string& pattern,
                                                       const fs::path& run_dir) {
  return reads_kept_tokenizer(name, run_dir) ? open_tokenizer(kept_tokenizer(run_dir).string())
                                             : open_tokenizer(name, pattern);
}

bool reads_kept_tokenizer(const std::string& name, const fs::path& run_dir) {
  std::error_code ignored;
  return name != "none" && name != ByteTokenizer::kName && !run_dir.empty() &&
         !fs::exists(name, ignored) && fs::is_directory(kept_tokenizer(run_dir), ignored);
}

}  // namespace memphis
