// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/byte_pair_files.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstring>
#include <map>
#include <optional>
#include <system_error>
#include <unordered_map>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <xxhash.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/data/byte_pair.h"
#include "csrc/data/digest.h"
#include "csrc/data/utf8.h"
#include "csrc/data/word_pattern.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using namespace std::string_view_literals;

constexpr std::int32_t kMaxId = 1 << 24;

// How words are cut. Sources: the definitions of the encodings in openai/tiktoken, of Llama 3, Qwen
// and Grok-2.
constexpr auto kGpt2 =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"sv;
constexpr auto kCl100k =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"sv;
constexpr auto kCl100kNow =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s)"sv;
constexpr auto kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"sv;
constexpr auto kQwen =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"sv;

// What is known of a tiktoken file by the number of its ranks; ids of special tokens are not in it.
struct KnownRanks {
  std::string_view name;
  std::string_view pattern;
  std::int32_t num_ranks;
  std::int32_t vocab_size;
  std::int32_t bos;
  std::int32_t eos;
};
constexpr std::array kKnown = {
    KnownRanks{"gpt2", kGpt2, 50256, 50257, -1, 50256},
    KnownRanks{"gpt2", kGpt2, 50280, 50281, -1, 50256},
    KnownRanks{"cl100k", kCl100kNow, 100256, 100277, -1, 100257},
    KnownRanks{"o200k", kO200k, 199998, 200019, -1, 199999},
    KnownRanks{"llama3", kCl100k, 128000, 128256, 128000, 128001},
    KnownRanks{"qwen", kQwen, 151643, 151851, -1, 151643},
};

// One way to cut what the cut before has left.
struct Cut {
  WordPattern pattern;
  bool keeps_gaps = true;  // what lies between matches is a word, too
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
  void add(AddedToken token) {
    starts_[static_cast<unsigned char>(token.text[0])] = true;
    tokens_.push_back(std::move(token));
    std::stable_sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) {
      return a.text.size() > b.text.size();
    });
  }
  bool empty() const { return tokens_.empty(); }

  // The first, of those the longest, from `from` on; its token is null where there is none.
  struct Found {
    std::size_t begin;
    const AddedToken* token;
  };
  Found find(std::string_view text, std::size_t from) const {
    for (std::size_t i = from; i < text.size(); ++i) {
      if (!starts_[static_cast<unsigned char>(text[i])]) {
        continue;
      }
      for (const AddedToken& token : tokens_) {
        if (text.substr(i).starts_with(token.text)) {
          return {i, &token};
        }
      }
    }
    return {text.size(), nullptr};
  }

 private:
  std::vector<AddedToken> tokens_;  // the longest first
  std::array<bool, 256> starts_{};
};

// What the readers below fill in.
struct Parts {
  std::vector<std::string> bytes;  // of each id; empty: none
  std::vector<bool> special;       // of each id
  MergeTable merges;
  bool whole_words = false;  // a word of the vocabulary is one id, however it would merge
  bool add_prefix_space = false;
  std::vector<Cut> cuts;
  AddedTokens raw;
  AddedTokens normalized;
  SpecialTokens ids;
  std::int32_t unknown = -1;
  std::int32_t vocab_size = 0;
};

[[noreturn]] void refuse_file(const fs::path& path,
                              const std::string& why,
                              const std::string& fix) {
  throw DataError("cannot use the tokenizer " + path.string() + " (" + why + "); " + fix);
}

[[noreturn]] void refuse_kind(const fs::path& path, const std::string& what) {
  refuse_file(path,
              what + ", which is not implemented here, and without it ids would be others",
              "tokenize with its own program, and give the ids as a Megatron dataset with "
              "data.tokenizer=none");
}

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
  BytePairTokenizer(fs::path path, std::string fingerprint, Parts parts)
      : path_(std::move(path)),
        fingerprint_(std::move(fingerprint)),
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
      if (parts_.whole_words) {
        words_.emplace(bytes, static_cast<std::int32_t>(id));
      }
    }
  }

  std::string_view kind() const override { return "byte-level BPE"; }
  std::int32_t vocab_size() const override { return parts_.vocab_size; }
  SpecialTokens special() const override { return parts_.ids; }
  std::string fingerprint() const override { return fingerprint_; }
  std::vector<fs::path> files() const override { return {path_}; }

  void append(std::string_view text, std::vector<std::int32_t>& ids) const override {
    std::string repaired;
    if (!is_utf8(text)) {
      std::uint64_t replaced = 0;
      repaired = with_replacements(text, replaced);
      text = repaired;
    }
    between(parts_.raw, text, ids, [&](std::string_view part) {
      between(parts_.normalized, part, ids, [&](std::string_view inner) { words_of(inner, ids); });
    });
  }

  std::string decode(std::span<const std::int32_t> ids) const override {
    require_known(ids);
    std::string bytes;
    for (const std::int32_t id : ids) {
      bytes += bytes_of(id);
    }
    std::uint64_t replaced = 0;
    return is_utf8(bytes) ? bytes : with_replacements(bytes, replaced);
  }

  std::string piece(std::int32_t id, bool /*is_first*/) const override {
    require_known({&id, 1});
    return bytes_of(id);
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

  void words_of(std::string_view text, std::vector<std::int32_t>& ids) const {
    if (parts_.add_prefix_space && !text.starts_with(' ')) {
      cut(0, " " + std::string(text), ids);
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
    for (std::size_t begin = 0; begin < text.size();) {
      const WordPattern::Match match = here.pattern.find(text, begin);
      if (match.begin > begin && here.keeps_gaps) {
        cut(depth + 1, text.substr(begin, match.begin - begin), ids);
      }
      if (match.end > match.begin) {
        cut(depth + 1, text.substr(match.begin, match.end - match.begin), ids);
      }
      begin = match.end;
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
    const auto whole = parts_.whole_words ? words_.find(std::string(word)) : words_.end();
    if (whole != words_.end()) {
      ids.push_back(whole->second);
    } else {
      for (const char c : word) {
        std::int32_t id = byte_ids_[static_cast<unsigned char>(c)];
        if (id < 0) {
          id = parts_.unknown;
        }
        if (id < 0) {
          throw DataError(fmt::format(
              "the tokenizer {} has no id for byte {} (and none for what is unknown), which a text "
              "holds; remove it from the text, or use another tokenizer",
              path_.string(),
              static_cast<unsigned>(static_cast<unsigned char>(c))));
        }
        ids.push_back(id);
      }
      ids.resize(begin + merge_word(parts_.merges, std::span(ids).subspan(begin)));
    }
    if (entry != nullptr && ids.size() - begin <= WordCache::kMaxIds) {
      WordCache::keep(*entry, word, std::span(ids).subspan(begin));
    }
  }

  fs::path path_;
  std::string fingerprint_;
  Parts parts_;
  std::uint64_t serial_;
  std::array<std::int32_t, 256> byte_ids_{};
  std::unordered_map<std::string, std::int32_t> words_;
};

// Sets bytes of an id; false where it has some already.
bool put(Parts& parts, std::int32_t id, std::string bytes, bool special) {
  const auto index = static_cast<std::size_t>(id);
  if (parts.bytes.size() <= index) {
    parts.bytes.resize(index + 1);
    parts.special.resize(index + 1);
  }
  if (!parts.bytes[index].empty()) {
    return false;
  }
  parts.bytes[index] = std::move(bytes);
  parts.special[index] = special;
  parts.vocab_size = std::max(parts.vocab_size, id + 1);
  return true;
}

// Where ranks are ids: two tokens whose bytes together are a third one's merge to it.
void add_merges_by_bytes(Parts& parts) {
  std::unordered_map<std::string_view, std::int32_t> ids;
  for (std::size_t id = 0; id < parts.bytes.size(); ++id) {
    if (!parts.bytes[id].empty() && !parts.special[id]) {
      ids.emplace(parts.bytes[id], static_cast<std::int32_t>(id));
    }
  }
  for (const auto& [bytes, id] : ids) {
    for (std::size_t cut = 1; cut < bytes.size(); ++cut) {
      const auto left = ids.find(bytes.substr(0, cut));
      const auto right = ids.find(bytes.substr(cut));
      if (left != ids.end() && right != ids.end()) {
        parts.merges.add(left->second, right->second, {static_cast<std::uint32_t>(id), id});
      }
    }
  }
  parts.whole_words = true;
}

void require_bytes(const fs::path& path, const Parts& parts) {
  std::array<bool, 256> there{};
  for (const std::string& bytes : parts.bytes) {
    if (bytes.size() == 1) {
      there[static_cast<unsigned char>(bytes[0])] = true;
    }
  }
  const auto missing = std::find(there.begin(), there.end(), false);
  if (missing != there.end()) {
    refuse_file(
        path,
        fmt::format("it has no id for byte {}, and texts are of any", missing - there.begin()),
        "fetch it again, whole");
  }
}

std::optional<std::string> decode_base64(std::string_view text) {
  constexpr auto kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"sv;
  if (text.empty() || text.size() % 4 != 0) {
    return {};
  }
  std::string bytes;
  std::uint32_t bits = 0;
  int num_bits = 0;
  const std::size_t end = text.find_last_not_of('=') + 1;
  if (text.size() - end > 2) {
    return {};
  }
  for (const char c : text.substr(0, end)) {
    const std::size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) {
      return {};
    }
    bits = (bits << 6U) | static_cast<std::uint32_t>(digit);
    num_bits += 6;
    if (num_bits >= 8) {
      num_bits -= 8;
      bytes += static_cast<char>((bits >> static_cast<unsigned>(num_bits)) & 0xFFU);
    }
  }
  return bytes;
}

struct Rank {
  std::string bytes;
  std::int32_t id;
};

std::optional<Rank> rank_of_line(std::string_view line) {
  const std::size_t space = line.find(' ');
  if (space == std::string_view::npos) {
    return {};
  }
  auto bytes = decode_base64(line.substr(0, space));
  std::int32_t id = -1;
  const char* const end = line.data() + line.size();
  const auto [stop, error] = std::from_chars(line.data() + space + 1, end, id);
  if (!bytes || bytes->empty() || error != std::errc() || stop != end || id < 0 || id > kMaxId) {
    return {};
  }
  return Rank{std::move(*bytes), id};
}

// The line at `at`, without its end; moves behind it.
std::string_view next_line(std::string_view text, std::size_t& at) {
  const std::size_t end = std::min(text.find('\n', at), text.size());
  std::string_view line = text.substr(at, end - at);
  at = end + 1;
  return line.ends_with('\r') ? line.substr(0, line.size() - 1) : line;
}

Parts read_tiktoken(const fs::path& path, std::string_view content, const std::string& pattern) {
  Parts parts;
  std::int32_t num_ranks = 0;
  int number = 0;
  for (std::size_t at = 0; at < content.size();) {
    const std::size_t begin = at;
    const std::string_view line = next_line(content, at);
    ++number;
    if (line.empty()) {
      continue;
    }
    std::optional<Rank> rank = rank_of_line(line);
    if (!rank || !put(parts, rank->id, std::move(rank->bytes), false)) {
      refuse_file(path,
                  fmt::format("line {}, at byte {}, {}",
                              number,
                              begin,
                              rank ? fmt::format("gives rank {} again", rank->id)
                                   : std::string("is no base64 and a rank")),
                  "fetch it again, whole");
    }
    ++num_ranks;
  }
  const KnownRanks* known = nullptr;
  for (const KnownRanks& each : kKnown) {
    if (each.num_ranks == num_ranks) {
      known = &each;
    }
  }
  std::string expression = pattern;
  for (const KnownRanks& each : kKnown) {
    if (each.name == pattern) {
      expression = each.pattern;
    }
  }
  if (expression.empty()) {
    if (known == nullptr) {
      refuse_file(path,
                  fmt::format("a tiktoken file does not say how text is cut into words, and of {} "
                              "ranks none is known",
                              num_ranks),
                  "set data.tokenizer_pattern to gpt2, cl100k, o200k, llama3 or qwen, or to its "
                  "regular expression");
    }
    expression = known->pattern;
  }
  if (known != nullptr) {
    parts.ids = {.pad = -1, .bos = known->bos, .eos = known->eos};
    parts.vocab_size = known->vocab_size;
  }
  require_bytes(path, parts);
  add_merges_by_bytes(parts);
  parts.cuts.push_back({WordPattern(expression), /*keeps_gaps=*/false});
  return parts;
}

// The byte that each character of a byte-level vocabulary stands for: those that print stand for
// themselves, the others follow from U+0100 on. Source: openai/gpt-2, encoder.py.
std::map<std::uint32_t, char> bytes_of_characters() {
  std::map<std::uint32_t, char> result;
  std::uint32_t next = 256;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    result[prints ? byte : next++] = static_cast<char>(byte);
  }
  return result;
}

std::optional<std::string> raw_bytes(std::string_view text) {
  static const std::map<std::uint32_t, char> kBytes = bytes_of_characters();
  std::string bytes;
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Unit unit = utf8_unit(text.substr(i));
    std::uint32_t code = static_cast<unsigned char>(text[i]);
    if (unit.bytes > 2 || !unit.whole) {
      return {};
    }
    if (unit.bytes == 2) {
      code = ((code & 0x1FU) << 6U) | (static_cast<unsigned char>(text[i + 1]) & 0x3FU);
    }
    const auto found = kBytes.find(code);
    if (found == kBytes.end()) {
      return {};
    }
    bytes += found->second;
    i += unit.bytes;
  }
  return bytes;
}

std::string type_of(const Json& part) {
  return part.is_object() ? part.value("type", std::string()) : std::string();
}

bool flag(const Json& object, const char* key, bool otherwise) {
  const auto found = object.find(key);
  return found == object.end() || !found->is_boolean() ? otherwise : found->get<bool>();
}

std::string escape_expression(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (std::string_view(R"(\^$.|?*+()[]{}#-)").find(c) != std::string_view::npos) {
      result += '\\';
    }
    result += c;
  }
  return result;
}

void read_pre_tokenizer(const fs::path& path, const Json& part, Parts& parts, bool& maps_bytes) {
  const std::string type = type_of(part);
  if (type == "Sequence") {
    for (const Json& each : part.at("pretokenizers")) {
      read_pre_tokenizer(path, each, parts, maps_bytes);
    }
  } else if (type == "ByteLevel") {
    if (flag(part, "add_prefix_space", true)) {
      if (!parts.cuts.empty()) {
        refuse_kind(path, "its ByteLevel adds a space to each word");
      }
      parts.add_prefix_space = true;
    }
    if (flag(part, "use_regex", true)) {
      parts.cuts.push_back({WordPattern(kGpt2)});
    }
    maps_bytes = true;
  } else if (type == "Digits") {
    parts.cuts.push_back(
        {WordPattern(flag(part, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)")});
  } else if (type == "Split") {
    const std::string behavior = part.value("behavior", std::string());
    const bool inverted = flag(part, "invert", false);
    const bool isolated = behavior == "Isolated";
    if (!isolated && !(behavior == "Removed" && inverted)) {
      refuse_kind(path, "its Split has behavior " + behavior + (inverted ? ", inverted" : ""));
    }
    const Json& pattern = part.at("pattern");
    const std::string expression = pattern.contains("Regex")
                                       ? pattern.at("Regex").get<std::string>()
                                       : escape_expression(pattern.at("String").get<std::string>());
    parts.cuts.push_back({WordPattern(expression), isolated});
  } else {
    refuse_kind(path, "its pre-tokenizer is " + (type.empty() ? std::string("none") : type));
  }
}

void read_added(const fs::path& path, const Json& list, Parts& parts) {
  for (const Json& each : list) {
    AddedToken token{.text = each.at("content").get<std::string>(),
                     .id = each.at("id").get<std::int32_t>(),
                     .is_special = flag(each, "special", false),
                     .after_normalizer = flag(each, "normalized", false)};
    if (token.id < 0 || token.id > kMaxId || token.text.empty()) {
      refuse_file(path, fmt::format("its added token {} has no text", token.id), "fetch it again");
    }
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (flag(each, key, false)) {
        refuse_kind(path, fmt::format("its added token {} has {}", token.text, key));
      }
    }
    const auto index = static_cast<std::size_t>(token.id);
    if (!put(parts, token.id, token.text, token.is_special)) {
      parts.bytes[index] = token.text;  // an added token's text is not in a byte-level alphabet
      parts.special[index] = token.is_special;
    }
    (token.after_normalizer ? parts.normalized : parts.raw).add(std::move(token));
  }
}

// The id of a token by its text; -1 where there is none.
std::int32_t id_of(const Json& added, const std::string& text) {
  for (const Json& each : added) {
    if (each.at("content") == text) {
      return each.at("id").get<std::int32_t>();
    }
  }
  return -1;
}

// What tokenizer_config.json beside it says, and else what such tokens are usually called.
SpecialTokens special_of(const fs::path& path, const Json& root, const Json& added) {
  Json beside;
  std::error_code ignored;
  const fs::path config = path.parent_path() / "tokenizer_config.json";
  if (fs::is_regular_file(config, ignored)) {
    beside = parse_json(read_text(config)).value_or(Json());
  }
  const auto named = [&](const char* key, std::initializer_list<const char*> usual) {
    if (beside.is_object() && beside.contains(key)) {
      const Json& value = beside.at(key);
      if (value.is_string()) {
        return id_of(added, value.get<std::string>());
      }
      if (value.is_object() && value.contains("content")) {
        return id_of(added, value.at("content").get<std::string>());
      }
      return -1;
    }
    for (const char* text : usual) {
      if (const std::int32_t id = id_of(added, text); id >= 0) {
        return id;
      }
    }
    return -1;
  };
  SpecialTokens ids{
      .pad = named("pad_token", {"<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"}),
      .bos = -1,
      .eos = named("eos_token", {"<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"})};
  // In front of a text stands what the post-processor puts there, and nothing where it puts nothing.
  const auto first_of_template = [&](const Json& processor) {
    if (type_of(processor) == "TemplateProcessing" && processor.contains("single") &&
        !processor.at("single").empty() &&
        processor.at("single").front().contains("SpecialToken")) {
      ids.bos = id_of(
          added, processor.at("single").front().at("SpecialToken").at("id").get<std::string>());
    }
  };
  if (const auto post = root.find("post_processor"); post != root.end() && post->is_object()) {
    first_of_template(*post);
    if (type_of(*post) == "Sequence" && post->contains("processors")) {
      for (const Json& each : post->at("processors")) {
        first_of_template(each);
      }
    }
  }
  return ids;
}

Parts read_hugging_face(const fs::path& path, const Json& root) {
  Parts parts;
  const Json& model = root.at("model");
  const std::string type =
      model.contains("merges") && type_of(model).empty() ? "BPE" : type_of(model);
  if (type != "BPE") {
    refuse_kind(path, "its model is " + (type.empty() ? std::string("of no type") : type));
  }
  if (const auto normalizer = root.find("normalizer");
      normalizer != root.end() && !normalizer->is_null()) {
    const bool is_nothing = type_of(*normalizer) == "Sequence" &&
                            normalizer->value("normalizers", Json::array()).empty();
    if (!is_nothing) {
      refuse_kind(path, "its normalizer is " + type_of(*normalizer));
    }
  }
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto found = model.find(key);
    if (found != model.end() && !found->is_null() && *found != "" && *found != 0) {
      refuse_kind(path, fmt::format("its model has {}", key));
    }
  }
  bool maps_bytes = false;
  read_pre_tokenizer(path, root.value("pre_tokenizer", Json()), parts, maps_bytes);
  if (!maps_bytes) {
    refuse_kind(path, "its pre-tokenizer is not byte-level");
  }

  std::unordered_map<std::string, std::int32_t> vocabulary;
  for (const auto& [text, value] : model.at("vocab").items()) {
    const auto id = value.get<std::int64_t>();
    if (id < 0 || id > kMaxId) {
      refuse_file(path, fmt::format("the id of {} is {}", text, id), "fetch it again");
    }
    const auto number = static_cast<std::int32_t>(id);
    const std::optional<std::string> bytes = raw_bytes(text);
    vocabulary.emplace(text, number);
    if (!put(parts, number, bytes.value_or(text), !bytes)) {
      refuse_file(path, fmt::format("two of its tokens have id {}", id), "fetch it again");
    }
  }
  std::uint32_t rank = 0;
  for (const Json& merge : model.at("merges")) {
    std::string left;
    std::string right;
    if (merge.is_array() && merge.size() == 2) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    } else {
      const std::string text = merge.get<std::string>();
      const std::size_t space = text.find(' ');
      left = text.substr(0, space);
      right = space == std::string::npos ? std::string() : text.substr(space + 1);
    }
    const auto a = vocabulary.find(left);
    const auto b = vocabulary.find(right);
    const auto both = vocabulary.find(left + right);
    if (a == vocabulary.end() || b == vocabulary.end() || both == vocabulary.end()) {
      refuse_file(path,
                  fmt::format("its merge {}, {} and {}, has a part that is not in the vocabulary",
                              rank,
                              left,
                              right),
                  "fetch it again, whole");
    }
    parts.merges.add(a->second, b->second, {rank, both->second});
    ++rank;
  }
  parts.whole_words = flag(model, "ignore_merges", false);
  if (const auto unknown = model.find("unk_token");
      unknown != model.end() && unknown->is_string()) {
    const auto found = vocabulary.find(unknown->get<std::string>());
    parts.unknown = found == vocabulary.end() ? -1 : found->second;
  }
  const Json added = root.value("added_tokens", Json::array());
  read_added(path, added, parts);
  parts.ids = special_of(path, root, added);
  return parts;
}

// Source: the tokenizer.tok.json of xai-org/grok-2.
Parts read_grok2(const fs::path& path, const Json& root) {
  Parts parts;
  const std::string split = root.value("word_split", std::string());
  if (split != "V1") {
    refuse_kind(path, "its word_split is " + split);
  }
  const auto bytes_of = [](const Json& token) {
    std::string bytes;
    for (const Json& byte : token.at("bytes")) {
      bytes += static_cast<char>(byte.get<unsigned>());
    }
    return bytes;
  };
  for (const Json& token : root.at("regular_tokens")) {
    const auto id = token.at("token").get<std::int32_t>();
    if (id < 0 || id > kMaxId || !put(parts, id, bytes_of(token), false)) {
      refuse_file(path, fmt::format("id {} is given twice or out of range", id), "fetch it again");
    }
  }
  add_merges_by_bytes(parts);
  for (const Json& token : root.at("special_tokens")) {
    const auto id = token.at("token").get<std::int32_t>();
    const std::string text = bytes_of(token);
    if (id < 0 || id > kMaxId || !put(parts, id, text, true)) {
      refuse_file(path, fmt::format("id {} is given twice or out of range", id), "fetch it again");
    }
    parts.ids.eos = text == "<|eos|>" ? id : parts.ids.eos;
    parts.ids.pad = text == "<|pad|>" ? id : parts.ids.pad;
    parts.ids.bos = text == "<|bos|>" ? id : parts.ids.bos;
  }
  if (const auto size = root.find("vocab_size"); size != root.end() && size->is_number_integer()) {
    parts.vocab_size = std::max(parts.vocab_size, size->get<std::int32_t>());
  }
  require_bytes(path, parts);
  parts.cuts.push_back({WordPattern(kCl100k), /*keeps_gaps=*/false});
  return parts;
}

}  // namespace

bool is_tokenizer_json(std::string_view content) {
  const std::size_t first = content.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && content[first] == '{';
}

bool is_tiktoken(std::string_view content) {
  std::size_t at = 0;
  return rank_of_line(next_line(content, at)).has_value();
}

std::shared_ptr<const Tokenizer> open_byte_pair_tokenizer(const fs::path& path,
                                                          const std::string& content,
                                                          const std::string& pattern) {
  const std::string fingerprint = digest_of(digest_of(content) + "\n" + pattern);
  if (!is_tokenizer_json(content)) {
    return std::make_shared<const BytePairTokenizer>(
        path, fingerprint, read_tiktoken(path, content, pattern));
  }
  if (!pattern.empty()) {
    throw DataError("data.tokenizer_pattern is given and " + path.string() +
                    " is no tiktoken file (it says itself how text is cut); leave it out");
  }
  const std::optional<Json> root = parse_json(content);
  if (!root || !root->is_object()) {
    refuse_file(path, "it is JSON that breaks off or is damaged", "fetch it again, whole");
  }
  try {
    return std::make_shared<const BytePairTokenizer>(path,
                                                     fingerprint,
                                                     root->contains("regular_tokens")
                                                         ? read_grok2(path, *root)
                                                         : read_hugging_face(path, *root));
  } catch (const Json::exception& error) {
    refuse_file(path,
                fmt::format("it lacks what a tokenizer.json has: {}", error.what()),
                "fetch it again, or name a tokenizer.json");
  }
}

}  // namespace memphis
