// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/byte_pair_tokenizer.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <unordered_map>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <xxhash.h>

#include "csrc/core/error.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

// The ids of words that are common, by thread: a word is looked up instead of merged again.
class WordCache {
 public:
  static constexpr std::size_t kMaxBytes = 23;
  static constexpr std::size_t kMaxIds = 6;
  struct Entry {
    std::array<char, kMaxBytes> word{};
    std::uint8_t num_bytes = 0;  // 0: none
    std::uint32_t num_ids = 0;
    std::array<std::int32_t, kMaxIds> ids{};
  };

  // Where the word is, or would be; all words are of the tokenizer `owner`.
  Entry& place_of(std::string_view word, std::uint64_t owner) {
    if (owner != owner_) {
      entries_.assign(kEntries, {});
      owner_ = owner;
    }
    return entries_[XXH3_64bits(word.data(), word.size()) % kEntries];
  }
  static bool holds(const Entry& entry, std::string_view word) {
    return entry.num_bytes == word.size() &&
           std::memcmp(entry.word.data(), word.data(), word.size()) == 0;
  }
  static void keep(Entry& entry, std::string_view word, std::span<const std::int32_t> ids) {
    std::memcpy(entry.word.data(), word.data(), word.size());
    entry.num_bytes = static_cast<std::uint8_t>(word.size());
    entry.num_ids = static_cast<std::uint32_t>(ids.size());
    std::copy(ids.begin(), ids.end(), entry.ids.begin());
  }

 private:
  static constexpr std::size_t kEntries = std::size_t{1} << 15U;  // 2 MB
  std::vector<Entry> entries_;
  std::uint64_t owner_ = 0;
};

class BytePairTokenizer final : public Tokenizer {
 public:
  BytePairTokenizer(std::filesystem::path path,
                    std::string fingerprint,
                    std::vector<TokenizerFile> files,
                    BytePairParts parts)
      : path_(std::move(path)),
        fingerprint_(std::move(fingerprint)),
        files_(std::move(files)),
        parts_(std::move(parts)),
        serial_(next_serial()) {
    byte_ids_.fill(-1);
    for (std::size_t id = 0; id < parts_.bytes.size(); ++id) {
      const std::string& bytes = parts_.bytes[id];
      if (parts_.special[id] || bytes.empty()) {
        continue;
      }
      if (bytes.size() == 1) {
        byte_ids_[static_cast<unsigned char>(bytes[0])] = static_cast<std::int32_t>(id);
      }
      if (parts_.whole_words && !parts_.characters) {
        parts_.words.emplace(bytes, static_cast<std::int32_t>(id));
      }
    }
  }

  std::string_view kind() const override { return parts_.characters ? "BPE" : "byte-level BPE"; }
  std::int32_t vocab_size() const override { return parts_.vocab_size; }
  SpecialTokens special() const override { return parts_.ids; }
  std::string fingerprint() const override { return fingerprint_; }
  const std::vector<TokenizerFile>& files() const override { return files_; }

  void append(std::string_view text, std::vector<std::int32_t>& ids) const override {
    std::string repaired;
    if (!is_utf8(text)) {
      std::uint64_t replaced = 0;
      repaired = with_replacements(text, replaced);
      text = repaired;
    }
    const char* const beginning = text.data();
    between(parts_.raw, text, ids, [&](std::string_view part) {
      const bool is_first = part.data() == beginning;
      if (parts_.normalizer.empty()) {
        in_normalized(part, is_first, ids);
      } else {
        in_normalized(parts_.normalizer.apply(part), is_first, ids);
      }
    });
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    require_known(ids);
    std::string bytes;
    bool is_first = true;
    for (const std::int32_t id : ids) {
      bytes += piece(id, is_first);
      is_first = is_first && bytes_of(id).empty();
    }
    std::uint64_t replaced = 0;
    return is_utf8(bytes) ? bytes : with_replacements(bytes, replaced);
  }

  std::string piece(std::int32_t id, bool is_first) const override {
    require_known({&id, 1});
    std::string bytes = bytes_of(id);
    if (is_first) {
      const std::size_t spaces = std::min(bytes.find_first_not_of(' '), bytes.size());
      bytes.erase(0, parts_.hides_first_spaces ? spaces : std::min(spaces, parts_.hidden_spaces));
    }
    return bytes;
  }

 private:
  static std::uint64_t next_serial() {
    static std::atomic<std::uint64_t> last{0};
    return ++last;
  }

  std::string bytes_of(std::int32_t id) const {
    const auto index = static_cast<std::size_t>(id);
    return index < parts_.bytes.size() && !parts_.special[index] ? parts_.bytes[index]
                                                                 : std::string();
  }

  template <class Rest>
  static void between(const AddedTokens& tokens,
                      std::string_view text,
                      std::vector<std::int32_t>& ids,
                      const Rest& rest) {
    std::size_t begin = 0;
    while (!tokens.empty()) {
      const AddedTokens::Found found = tokens.find(text, begin);
      if (found.token == nullptr) {
        break;
      }
      if (found.begin > begin) {
        rest(text.substr(begin, found.begin - begin));
      }
      ids.push_back(found.token->id);
      begin = found.begin + found.token->text.size();
    }
    if (begin < text.size()) {
      rest(text.substr(begin));
    }
  }

  void in_normalized(std::string_view text, bool is_first, std::vector<std::int32_t>& ids) const {
    between(parts_.normalized, text, ids, [&](std::string_view part) {
      words_of(part, is_first && part.data() == text.data(), ids);
    });
  }

  void words_of(std::string_view text, bool is_first, std::vector<std::int32_t>& ids) const {
    if (parts_.metaspace) {
      const Metaspace& metaspace = *parts_.metaspace;
      std::string marked = with_replaced(text, " ", metaspace.mark);
      if (!marked.starts_with(metaspace.mark) &&
          (metaspace.prepended == Metaspace::Prepended::always ||
           (metaspace.prepended == Metaspace::Prepended::first && is_first))) {
        marked = metaspace.mark + marked;
      }
      cut(0, marked, ids);
    } else if (parts_.add_prefix_space && !text.starts_with(' ')) {
      std::string spaced(1, ' ');
      spaced += text;
      cut(0, spaced, ids);
    } else {
      cut(0, text, ids);
    }
  }

  void cut(std::size_t depth, std::string_view text, std::vector<std::int32_t>& ids) const {
    if (depth == parts_.cuts.size()) {
      encode_word(text, ids);
      return;
    }
    const Cut& here = parts_.cuts[depth];
    // Of words that are made of more than one part, what is there of it so far.
    std::size_t word_begin = 0;
    bool after_match = false;
    const auto end_word = [&](std::size_t end) {
      if (end > word_begin) {
        cut(depth + 1, text.substr(word_begin, end - word_begin), ids);
      }
      word_begin = end;
    };
    const auto part = [&](std::size_t begin, std::size_t end, bool is_match) {
      if (begin == end) {
        return;
      }
      switch (here.words) {
        case Cut::Words::isolated:
          end_word(end);
          break;
        case Cut::Words::removed:
          word_begin = is_match ? end : begin;
          end_word(end);
          break;
        case Cut::Words::contiguous:
          if (begin > 0 && is_match != after_match) {
            end_word(begin);
          }
          break;
        case Cut::Words::merged_with_previous:
          if (!is_match || after_match) {
            end_word(begin);
          }
          break;
        case Cut::Words::merged_with_next:
          if (is_match || !after_match) {
            end_word(begin);
          }
          break;
      }
      after_match = is_match;
    };
    for (std::size_t begin = 0; begin < text.size();) {
      const WordPattern::Match match = here.pattern.find(text, begin);
      part(begin, match.begin, here.inverted);
      part(match.begin, match.end, !here.inverted);
      begin = match.end;
    }
    end_word(text.size());
  }

  std::int32_t unknown(std::string_view what) const {
    if (parts_.unknown < 0) {
      std::string bytes;
      for (const char c : what) {
        bytes += fmt::format(" {:#04x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
      }
      throw DataError(fmt::format(
          "the tokenizer {} has no id for{} (and none for what is unknown), which a text holds; "
          "remove it from the text, or use another tokenizer",
          path_.string(),
          bytes));
    }
    return parts_.unknown;
  }

  void append_characters(const Characters& characters,
                         std::string_view word,
                         std::vector<std::int32_t>& ids) const {
    bool after_unknown = false;
    for (std::size_t begin = 0; begin < word.size();) {
      const std::string one(word.substr(begin, utf8_unit(word.substr(begin)).bytes));
      begin += one.size();
      const auto found = characters.ids.find(one);
      const bool is_unknown = found == characters.ids.end() && characters.byte_ids[0] < 0;
      if (found != characters.ids.end()) {
        ids.push_back(found->second);
      } else if (!is_unknown) {
        for (const char c : one) {
          ids.push_back(characters.byte_ids[static_cast<unsigned char>(c)]);
        }
      } else if (!after_unknown || !characters.fuses_unknown) {
        ids.push_back(unknown(one));
      }
      after_unknown = is_unknown;
    }
  }

  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
    const std::size_t begin = ids.size();
    thread_local WordCache cache;
    WordCache::Entry* entry = nullptr;
    if (word.size() <= WordCache::kMaxBytes) {
      entry = &cache.place_of(word, serial_);
      if (WordCache::holds(*entry, word)) {
        ids.insert(ids.end(), entry->ids.begin(), entry->ids.begin() + entry->num_ids);
        return;
      }
    }
    const auto whole =
        parts_.whole_words ? parts_.words.find(std::string(word)) : parts_.words.end();
    if (whole != parts_.words.end()) {
      ids.push_back(whole->second);
    } else {
      if (parts_.characters) {
        append_characters(*parts_.characters, word, ids);
      } else {
        for (const char c : word) {
          const std::int32_t id = byte_ids_[static_cast<unsigned char>(c)];
          ids.push_back(id < 0 ? unknown({&c, 1}) : id);
        }
      }
      ids.resize(begin + merge_word(parts_.merges, std::span(ids).subspan(begin)));
    }
    if (entry != nullptr && ids.size() - begin <= WordCache::kMaxIds) {
      WordCache::keep(*entry, word, std::span(ids).subspan(begin));
    }
  }

  std::filesystem::path path_;
  std::string fingerprint_;
  std::vector<TokenizerFile> files_;
  BytePairParts parts_;
  std::uint64_t serial_;
  std::array<std::int32_t, 256> byte_ids_{};
};

}  // namespace

std::shared_ptr<const Tokenizer> make_byte_pair_tokenizer(std::filesystem::path path,
                                                          std::string fingerprint,
                                                          std::vector<TokenizerFile> files,
                                                          BytePairParts parts) {
  return std::make_shared<const BytePairTokenizer>(
      std::move(path), std::move(fingerprint), std::move(files), std::move(parts));
}

}  // namespace memphis
