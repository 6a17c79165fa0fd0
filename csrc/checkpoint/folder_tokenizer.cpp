// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/folder_tokenizer.h"

#include <array>
#include <optional>
#include <string_view>
#include <system_error>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/json.h"
#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/store.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/file_kind.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

// 256 bytes, and pad, bos and eos.
constexpr std::int64_t kByteVocabulary = 259;
// Of csrc/data/tokenizer.h, which does not lie below this layer.
constexpr std::string_view kByteFingerprint = "byte";

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

// As UTF-8.
std::string utf8_of(char32_t letter) {
  if (letter < 0x80) {
    return {static_cast<char>(letter)};
  }
  return {static_cast<char>(0xC0U | (letter >> 6U)), static_cast<char>(0x80U | (letter & 0x3FU))};
}

// How each byte is spelled in a vocabulary of letters: those that are seen and no space as
// themselves, the others as letters from 256 on, in their order.
std::array<std::string, 256> byte_letters() {
  std::array<std::string, 256> letters;
  char32_t next = 256;
  for (char32_t byte = 0; byte < letters.size(); ++byte) {
    const bool seen =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    letters[byte] = utf8_of(seen ? byte : next++);
  }
  return letters;
}

constexpr std::array<std::string_view, 3> kSpecialTokens{"<|pad|>", "<|bos|>", "<|eos|>"};

// Whether the only tokenizer there is the one that an export writes.
bool is_byte_tokenizer(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_regular_file(folder / "tokenizer.json", error)) {
    return false;
  }
  const std::string own = byte_tokenizer_json();
  return fs::file_size(folder / "tokenizer.json", error) == own.size() && !error &&
         read_text(folder / "tokenizer.json") == own;
}

}  // namespace

std::string byte_tokenizer_json() {
  using Json = nlohmann::ordered_json;
  Json added = Json::array();
  Json vocab = Json::object();
  for (std::size_t id = 0; id < kSpecialTokens.size(); ++id) {
    added.push_back({{"id", id},
                     {"content", kSpecialTokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
    vocab[std::string(kSpecialTokens[id])] = id;
  }
  const std::array<std::string, 256> letters = byte_letters();
  for (std::size_t byte = 0; byte < letters.size(); ++byte) {
    vocab[letters[byte]] = ByteIds::first_byte + static_cast<int>(byte);
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  const std::string bos(kSpecialTokens[ByteIds::bos]);
  const Json begin = {{"SpecialToken", {{"id", bos}, {"type_id", 0}}}};
  const auto text = [](const char* id, int type) {
    return Json{{"Sequence", {{"id", id}, {"type_id", type}}}};
  };
  Json root;
  root["version"] = "1.0";
  root["truncation"] = nullptr;
  root["padding"] = nullptr;
  root["added_tokens"] = added;
  root["normalizer"] = nullptr;
  root["pre_tokenizer"] = byte_level;
  root["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", Json::array({begin, text("A", 0)})},
      {"pair", Json::array({begin, text("A", 0), text("B", 1)})},
      {"special_tokens",
       {{bos,
         {{"id", bos}, {"ids", Json::array({ByteIds::bos})}, {"tokens", Json::array({bos})}}}}}};
  root["decoder"] = byte_level;
  root["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", false},
                   {"vocab", vocab},
                   {"merges", Json::array()}};
  return root.dump(1) + "\n";
}

std::string byte_tokenizer_config_json() {
  nlohmann::ordered_json root;
  root["tokenizer_class"] = "PreTrainedTokenizerFast";
  root["pad_token"] = kSpecialTokens[ByteIds::pad];
  root["bos_token"] = kSpecialTokens[ByteIds::bos];
  root["eos_token"] = kSpecialTokens[ByteIds::eos];
  root["clean_up_tokenization_spaces"] = false;
  return root.dump(1) + "\n";
}

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
  // A run says whose ids it has, however large its vocabulary. What an export says of itself holds
  // until somebody adds a tokenizer.
  const bool is_checkpoint = fs::exists(folder / kManifestName, error);
  if (is_checkpoint) {
    const fs::path manifest = folder / kManifestName;
    const std::string written = read_manifest(read_text(manifest), manifest).tokenizer_fingerprint;
    tokenizer.is_byte = written.empty() || written == kByteFingerprint;
    return tokenizer;
  }
  const bool says_so = tokenizer_class != config.end() && *tokenizer_class == kByteTokenizerClass;
  if (is_byte_tokenizer(folder)) {
    std::erase_if(tokenizer.files, [](const std::string& name) {
      return name == "tokenizer.json" || name == "tokenizer_config.json";
    });
    // Beside another one nobody knows which is meant.
    if (tokenizer.files.empty()) {
      tokenizer.is_byte = true;
      return tokenizer;
    }
    tokenizer.files.insert(tokenizer.files.begin(), "tokenizer.json");
  }
  tokenizer.is_byte = (tokenizer.files.empty() && (says_so || vocab_size == kByteVocabulary));
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
