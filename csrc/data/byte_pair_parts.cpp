// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/byte_pair_parts.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"

namespace memphis {

void AddedTokens::add(AddedToken token) {
  std::vector<AddedToken>& tokens = tokens_[static_cast<unsigned char>(token.text[0])];
  const auto place = std::find_if(tokens.begin(), tokens.end(), [&](const AddedToken& other) {
    return other.text.size() < token.text.size();
  });
  tokens.insert(place, std::move(token));
  empty_ = false;
}

AddedTokens::Found AddedTokens::find(std::string_view text, std::size_t from) const {
  for (std::size_t i = from; i < text.size(); ++i) {
    for (const AddedToken& token : tokens_[static_cast<unsigned char>(text[i])]) {
      if (text.substr(i).starts_with(token.text)) {
        return {i, &token};
      }
    }
  }
  return {text.size(), nullptr};
}

bool BytePairParts::put(std::int32_t id, std::string text, bool is_special) {
  const auto index = static_cast<std::size_t>(id);
  if (bytes.size() <= index) {
    bytes.resize(index + 1);
    special.resize(index + 1);
  }
  if (!bytes[index].empty()) {
    return false;
  }
  bytes[index] = std::move(text);
  special[index] = is_special;
  vocab_size = std::max(vocab_size, id + 1);
  return true;
}

void BytePairParts::add_merges_by_bytes() {
  std::unordered_map<std::string_view, std::int32_t> id_of;
  for (std::size_t id = 0; id < bytes.size(); ++id) {
    if (!bytes[id].empty() && !special[id]) {
      id_of.emplace(bytes[id], static_cast<std::int32_t>(id));
    }
  }
  for (const auto& [text, id] : id_of) {
    for (std::size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = id_of.find(text.substr(0, cut));
      const auto right = id_of.find(text.substr(cut));
      if (left != id_of.end() && right != id_of.end()) {
        merges.add(left->second, right->second, {static_cast<std::uint32_t>(id), id});
      }
    }
  }
  whole_words = true;
}

void BytePairParts::require_bytes(const std::filesystem::path& path) const {
  std::array<bool, 256> there{};
  for (const std::string& text : bytes) {
    if (text.size() == 1) {
      there[static_cast<unsigned char>(text[0])] = true;
    }
  }
  const auto missing = std::find(there.begin(), there.end(), false);
  if (missing != there.end()) {
    refuse_tokenizer(
        path,
        fmt::format("it has no id for byte {}, and texts are of any", missing - there.begin()),
        "fetch it again, whole");
  }
}

void refuse_tokenizer(const std::filesystem::path& path,
                      const std::string& why,
                      const std::string& fix) {
  throw DataError("cannot use the tokenizer " + path.string() + " (" + why + "); " + fix);
}

void refuse_tokenizer_kind(const std::filesystem::path& path, const std::string& what) {
  refuse_tokenizer(path,
                   what + ", which is not implemented here, and without it ids would be others",
                   "tokenize with its own program, and give the ids as a Megatron dataset with "
                   "data.tokenizer=none");
}

}  // namespace memphis
