// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/data/document_reader.h"
#include "csrc/data/text_files.h"
#include "csrc/data/tokenize_options.h"

namespace memphis {

// Files by how they are read, which their content tells.
struct SortedFiles {
  std::vector<TextFile> text;         // by TextStream, which passes over or refuses what is none
  std::vector<CorpusFile> documents;  // tokenized first
  std::vector<std::filesystem::path> megatron;     // indices
  std::vector<std::filesystem::path> token_files;  // of llm.c and llmq
};

bool has_lines(const SortedFiles& sorted);

// For config.tokenizer. Lines of JSON that were walked to and have not the field of texts are no
// corpus, and text.
SortedFiles sort_files(const std::vector<TextFile>& files, const DataConfig& config);

// The files of text that `entries` stand for, as in data.train. DataError where one that an entry
// names is none; what a folder has beside is passed over, and the log says so.
std::vector<CorpusFile> list_corpus(const std::vector<std::string>& entries,
                                    const TokenizeOptions& options);

}  // namespace memphis
