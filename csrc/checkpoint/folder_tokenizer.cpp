// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/folder_tokenizer.h"

#include <array>
#include <optional>
#include <system_error>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/json.h"
#include "csrc/checkpoint/store.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/file_kind.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

// 256 bytes, and pad, bos and eos.
constexpr std::int64_t kByteVocabulary = 259;

// Of transformers, SentencePiece, tiktoken and xai-org/grok-2.
constexpr std::array kTokenizerFiles{"tokenizer.json",
                                     "tokenizer.model",
                                     "tokenizer.tok.json",
                                     "tokenizer_config.json",
                                     "tiktoken.model",
                                     "spiece.model",
                                     "vocab.json",
                                     "merges.txt"};

// What the file is that lies there, if it is not what its name says.
std::optional<FileKind> kind_of(const fs::path& path) {
  try {
    return recognise(InputFile(path).beginning(kKindBytes));
  } catch (const DataError&) {
    return {};
  }
}

}  // namespace

FolderTokenizer find_tokenizer(const fs::path& folder, std::int64_t vocab_size) {
  FolderTokenizer tokenizer;
  std::error_code error;
  for (const char* name : kTokenizerFiles) {
    if (fs::exists(fs::symlink_status(folder / name, error))) {
      tokenizer.files.emplace_back(name);
    }
  }
  const nlohmann::json config = read_json_object(folder / "config.json");
  const auto tokenizer_class = config.find("tokenizer_class");
  // A run has no other tokenizer, however large its vocabulary. What an export says of itself holds
  // until somebody adds a tokenizer.
  const bool is_checkpoint = fs::exists(folder / kManifestName, error);
  const bool says_so = tokenizer_class != config.end() && *tokenizer_class == kByteTokenizerClass;
  tokenizer.is_byte =
      is_checkpoint || (tokenizer.files.empty() && (says_so || vocab_size == kByteVocabulary));
  return tokenizer;
}

std::string describe_files(const fs::path& folder, const FolderTokenizer& tokenizer) {
  std::vector<std::string> parts;
  for (const std::string& name : tokenizer.files) {
    const auto kind = kind_of(folder / name);
    parts.push_back(kind ? fmt::format("{}, which is {},", name, kind->what) : name);
  }
  return fmt::format("{}", fmt::join(parts, " and "));
}

}  // namespace memphis
