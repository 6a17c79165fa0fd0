// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/run_tokenizer.h"

#include <filesystem>
#include <string>
#include <system_error>

namespace memphis {
namespace {

constexpr const char* kTokenizerConfigName = "tokenizer_config.json";

}  // namespace

FolderTokenizer tokenizer_to_export(const Tokenizer* tokenizer) {
  FolderTokenizer exported;
  if (tokenizer == nullptr) {
    return exported;
  }
  exported.is_byte = tokenizer->kind() == ByteTokenizer::kName;
  if (exported.is_byte) {
    return exported;
  }
  const std::filesystem::path file = tokenizer->files().front();
  // A tokenizer is told from its content; programs look for it by name.
  const std::string name = file.filename().string();
  if (tokenizer->kind() == "SentencePiece") {
    exported.elsewhere["tokenizer.model"] = file;
  } else if (name.ends_with(".tok.json")) {
    exported.elsewhere["tokenizer.tok.json"] = file;
  } else if (!name.ends_with(".json")) {
    exported.elsewhere["tiktoken.model"] = file;
  } else {
    exported.elsewhere["tokenizer.json"] = file;
    // It says which tokens begin and end a document.
    const std::filesystem::path config = file.parent_path() / kTokenizerConfigName;
    std::error_code ignored;
    if (std::filesystem::exists(config, ignored)) {
      exported.elsewhere[kTokenizerConfigName] = config;
    }
  }
  return exported;
}

}  // namespace memphis
