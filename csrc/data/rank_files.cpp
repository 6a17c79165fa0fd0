// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/rank_files.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <system_error>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/data/known_patterns.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using namespace std::string_view_literals;
using namespace known_patterns;

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
  if (!bytes || bytes->empty() || error != std::errc() || stop != end || id < 0 ||
      id > kMaxTokenId) {
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

}  // namespace

bool is_tiktoken(std::string_view content) {
  std::size_t at = 0;
  return rank_of_line(next_line(content, at)).has_value();
}

TiktokenFile read_tiktoken(const fs::path& path,
                           std::string_view content,
                           const std::string& pattern) {
  BytePairParts parts;
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
    if (!rank || !parts.put(rank->id, std::move(rank->bytes), false)) {
      refuse_tokenizer(path,
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
      refuse_tokenizer(
          path,
          fmt::format("a tiktoken file does not say how text is cut into words, and of {} "
                      "ranks none is known",
                      num_ranks),
          "set data.tokenizer_pattern, or --pattern of the command tokenize, to gpt2, cl100k, "
          "o200k, llama3 or qwen, or to its regular expression");
    }
    expression = known->pattern;
  }
  if (known != nullptr) {
    parts.ids = {.pad = -1, .bos = known->bos, .eos = known->eos};
    parts.vocab_size = known->vocab_size;
  }
  parts.require_bytes(path);
  parts.add_merges_by_bytes();
  parts.cuts.push_back(
      {.pattern = WordPattern(expression), .words = Cut::Words::removed, .inverted = true});
  const bool is_usual = known != nullptr && expression == known->pattern;
  return {.parts = std::move(parts), .own_pattern = is_usual ? std::string() : expression};
}

// Source: the tokenizer.tok.json of xai-org/grok-2.
BytePairParts read_grok2(const fs::path& path, const Json& root) {
  BytePairParts parts;
  const std::string split = root.value("word_split", std::string());
  if (split != "V1") {
    refuse_tokenizer_kind(path, "its word_split is " + split);
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
    if (id < 0 || id > kMaxTokenId || !parts.put(id, bytes_of(token), false)) {
      refuse_tokenizer(
          path, fmt::format("id {} is given twice or out of range", id), "fetch it again");
    }
  }
  parts.add_merges_by_bytes();
  for (const Json& token : root.at("special_tokens")) {
    const auto id = token.at("token").get<std::int32_t>();
    const std::string text = bytes_of(token);
    if (id < 0 || id > kMaxTokenId || !parts.put(id, text, true)) {
      refuse_tokenizer(
          path, fmt::format("id {} is given twice or out of range", id), "fetch it again");
    }
    parts.ids.eos = text == "<|eos|>" ? id : parts.ids.eos;
    parts.ids.pad = text == "<|pad|>" ? id : parts.ids.pad;
    parts.ids.bos = text == "<|bos|>" ? id : parts.ids.bos;
  }
  if (const auto size = root.find("vocab_size"); size != root.end() && size->is_number_integer()) {
    parts.vocab_size = std::max(parts.vocab_size, size->get<std::int32_t>());
  }
  parts.require_bytes(path);
  parts.cuts.push_back(
      {.pattern = WordPattern(kCl100k), .words = Cut::Words::removed, .inverted = true});
  return parts;
}

}  // namespace memphis
