// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/tokenizer.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/data/byte_pair_files.h"
#include "csrc/data/rank_files.h"
#include "csrc/data/sentence_piece.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

// The largest that are in use have 20 MB.
constexpr std::uint64_t kMaxTokenizerBytes = std::uint64_t{256} << 20U;

// In a folder, the first that is there.
constexpr std::array kUsualNames{
    "tokenizer.json", "tokenizer.tok.json", "tokenizer.model", "spiece.model", "tiktoken.model"};

fs::path file_of(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) {
    return path;
  }
  for (const char* name : kUsualNames) {
    if (fs::exists(path / name, ignored)) {
      return path / name;
    }
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(path, ignored)) {
    if (entry.path().extension() == ".tiktoken") {
      return entry.path();
    }
  }
  throw DataError(path.string() +
                  " holds no tokenizer (it is a folder without tokenizer.json, "
                  "tokenizer.tok.json, tokenizer.model, spiece.model, tiktoken.model or a file "
                  "*.tiktoken); name the file");
}

}  // namespace

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  append(text, ids);
  return ids;
}

void Tokenizer::require_known(std::span<const std::int32_t> ids) const {
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) {
      require(false,
              "token " + std::to_string(id) + " has no text (the " + std::string(kind()) +
                  " tokenizer has ids 0 to " + std::to_string(vocab_size() - 1) +
                  "); mask the ids beyond them when sampling");
    }
  }
}

std::vector<std::int32_t> Tokenizer::begin_document(std::string_view text) const {
  std::vector<std::int32_t> ids;
  if (special().bos >= 0) {
    ids.push_back(special().bos);
  }
  append(text, ids);
  if (ids.empty()) {
    ids.push_back(std::max(special().eos, 0));
  }
  return ids;
}

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name,
                                                const std::string& pattern) {
  if (name == "none") {
    return nullptr;
  }
  if (name == ByteTokenizer::kName) {
    return std::make_shared<const ByteTokenizer>();
  }
  const fs::path path = file_of(name);
  const std::string content = read_text(path, kMaxTokenizerBytes);
  if (content.empty()) {
    throw DataError("the tokenizer " + path.string() +
                    " is empty (a download that was cut short, perhaps); fetch it again");
  }
  if (is_tokenizer_json(content) || is_tiktoken(content)) {
    return open_byte_pair_tokenizer(path, content, pattern);
  }
  if (!pattern.empty()) {
    throw DataError("a pattern is given for the tokenizer and " + path.string() +
                    " is no tiktoken file (it has no line of base64 and a rank); leave it out");
  }
  return open_sentence_piece(path, content);
}

void ByteTokenizer::append(std::string_view text, std::vector<std::int32_t>& ids) const {
  const std::size_t begin = ids.size();
  ids.resize(begin + text.size());
  std::transform(
      text.begin(), text.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin), [](char letter) {
        return token_of(static_cast<std::byte>(letter));
      });
}

std::string ByteTokenizer::decode(std::span<const std::int32_t> ids) const {
  require_known(ids);
  std::string text;
  text.reserve(ids.size());
  for (const std::int32_t id : ids) {
    if (id >= kFirstByte) {
      text.push_back(static_cast<char>(id - kFirstByte));
    }
  }
  return text;
}

const std::vector<TokenizerFile>& ByteTokenizer::files() const {
  static const std::vector<TokenizerFile> kNone;
  return kNone;
}

std::string ByteTokenizer::piece(std::int32_t id, bool /*is_first*/) const {
  return decode({&id, 1});
}

}  // namespace memphis
