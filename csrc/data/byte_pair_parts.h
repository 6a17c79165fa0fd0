// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/data/byte_pair.h"
#include "csrc/data/text_normalizer.h"
#include "csrc/data/tokenizer.h"
#include "csrc/data/word_pattern.h"

// What byte pair encoding is made of, whatever file it comes from, and what the readers of those
// files share.
namespace memphis {

constexpr std::int32_t kMaxTokenId = 1 << 24;

// One way to cut what the cut before has left: into matches of a pattern and the gaps between them,
// of which words are made. The names are those of Hugging Face's `tokenizers`.
struct Cut {
  enum class Words : std::uint8_t {
    isolated,              // each match, and each gap
    removed,               // gaps alone
    contiguous,            // matches that follow each other as one, and each gap
    merged_with_previous,  // a match with the gap in front of it
    merged_with_next       // a match with the gap behind it
  };
  WordPattern pattern;
  Words words = Words::isolated;
  bool inverted = false;  // gaps are what matches are otherwise, and matches gaps
};

// A space is written as another character, and one stands in front of a text.
struct Metaspace {
  enum class Prepended : std::uint8_t { always, first, never };
  std::string mark;  // "\u2581"
  Prepended prepended = Prepended::always;
};

// What an encoding begins with, before anything merges.
struct Characters {
  std::unordered_map<std::string, std::int32_t> ids;
  // Of the bytes of a character that is none of these; -1, and all are, without such ids.
  std::array<std::int32_t, 256> byte_ids{};
  bool fuses_unknown = false;  // a stretch of what is neither is one unknown token
};

// A text that is an id of its own wherever it stands.
struct AddedToken {
  std::string text;
  std::int32_t id = -1;
  bool is_special = false;
  bool after_normalizer = false;  // looked for once those that are not have been
};

class AddedTokens {
 public:
  void add(AddedToken token);
  bool empty() const { return empty_; }

  // The first, of those the longest, from `from` on; its token is null where there is none.
  struct Found {
    std::size_t begin;
    const AddedToken* token;
  };
  Found find(std::string_view text, std::size_t from) const;

 private:
  std::array<std::vector<AddedToken>, 256> tokens_;  // by first byte, the longest first
  bool empty_ = true;
};

struct BytePairParts {
  std::vector<std::string> bytes;  // of each id; empty: none
  std::vector<bool> special;       // of each id
  MergeTable merges;
  bool whole_words = false;  // a word of the vocabulary is one id, however it would merge
  bool add_prefix_space = false;
  std::vector<Cut> cuts;
  TextNormalizer normalizer;
  std::optional<Metaspace> metaspace;
  std::optional<Characters> characters;                 // without, it begins with bytes
  std::unordered_map<std::string, std::int32_t> words;  // of whole_words
  // Of a decoded text: so many spaces at its beginning are not shown, or all of its first token.
  std::size_t hidden_spaces = 0;
  bool hides_first_spaces = false;
  AddedTokens raw;
  AddedTokens normalized;
  SpecialTokens ids;
  std::int32_t unknown = -1;
  std::int32_t vocab_size = 0;

  // Sets bytes of an id; false where it has some already.
  bool put(std::int32_t id, std::string text, bool is_special);

  // Where ranks are ids: two tokens whose bytes together are a third one's merge to it.
  void add_merges_by_bytes();

  // DataError, with the file, unless each byte has an id.
  void require_bytes(const std::filesystem::path& path) const;
};

[[noreturn]] void refuse_tokenizer(const std::filesystem::path& path,
                                   const std::string& why,
                                   const std::string& fix);

// Of what is not implemented.
[[noreturn]] void refuse_tokenizer_kind(const std::filesystem::path& path, const std::string& what);

}  // namespace memphis
