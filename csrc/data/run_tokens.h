// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/data/corpus.h"
#include "csrc/data/file_records.h"
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

// Null where they are. What lies there and is damaged is made again.
std::unique_ptr<TokenizeJob> start_tokenizing(const std::string& key,
                                              const std::filesystem::path& run_dir,
                                              const SortedFiles& sorted,
                                              const std::shared_ptr<const Tokenizer>& tokenizer,
                                              const TokenizeOptions& options);

// Whether tokens that the run has kept are not what it wrote; a warning says so, and
// start_tokenizing() makes them again. What was written is known by its digest, which note_tokens()
// keeps beside it. Tokens may be hundreds of gigabytes, and none are read for this alone: files of
// the size and time that `records` know have what was read of them then, and others are read once
// at a start anyway, for their largest id and their digest.
bool discard_if_damaged(const std::string& key,
                        const std::filesystem::path& prefix,
                        const Tokenizer& tokenizer,
                        FileRecords& records);

// Keeps the digest of tokens that have just been read for the first time; else nothing.
void note_tokens(const std::filesystem::path& prefix, const std::string& digest);

// In the log, and in `warnings` what was read otherwise than it stands in the text.
void say_tokenized(const std::string& key,
                   const TokenizeJob::Counts& counts,
                   std::vector<std::string>& warnings);

}  // namespace memphis
