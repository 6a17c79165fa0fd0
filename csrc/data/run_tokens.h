// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/data/corpus.h"
#include "csrc/data/tokenize.h"
#include "csrc/data/tokenizer.h"

// What a run makes of its text before it reads it, and keeps in its directory.
namespace memphis {

TokenizeOptions tokenize_options(const DataConfig& config);

// The records of what was learnt of files; empty where there is no run.
std::filesystem::path records_of_run(const std::filesystem::path& run_dir);

// ConfigError where `key` has text and there is no tokenizer, which is null.
void require_tokenizer(const std::string& key,
                       const SortedFiles& sorted,
                       const Tokenizer* tokenizer);

// Beside a dataset of `memphis tokenize` lies what it was made with: DataError where that is another
// tokenizer than this one.
void require_same_tokenizer(std::filesystem::path path, const Tokenizer* tokenizer);

// Where the documents of a part lie once they are tokenized.
std::filesystem::path tokens_prefix(const std::filesystem::path& run_dir,
                                    const SortedFiles& sorted,
                                    const Tokenizer& tokenizer,
                                    const TokenizeOptions& options);

// Null where they are.
std::unique_ptr<TokenizeJob> start_tokenizing(const std::string& key,
                                              const std::filesystem::path& run_dir,
                                              const SortedFiles& sorted,
                                              const std::shared_ptr<const Tokenizer>& tokenizer,
                                              const TokenizeOptions& options);

// In the log, and in `warnings` what was read otherwise than it stands in the text.
void say_tokenized(const std::string& key,
                   const TokenizeJob::Counts& counts,
                   std::vector<std::string>& warnings);

}  // namespace memphis
