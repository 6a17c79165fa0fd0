// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/tokenizer_json.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <system_error>
#include <unordered_map>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/data/known_patterns.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using namespace known_patterns;

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, for a space

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

// A pattern of a Split or a Replace: a regular expression, or a text.
std::string expression_of(const Json& pattern) {
  return pattern.contains("Regex") ? pattern.at("Regex").get<std::string>()
                                   : escape_expression(pattern.at("String").get<std::string>());
}

Cut cut_of(const fs::path& path, const Json& split) {
  using Words = Cut::Words;
  static const std::map<std::string, Words, std::less<>> kBehaviors = {
      {"Isolated", Words::isolated},
      {"Removed", Words::removed},
      {"Contiguous", Words::contiguous},
      {"MergedWithPrevious", Words::merged_with_previous},
      {"MergedWithNext", Words::merged_with_next}};
  const std::string behavior = split.value("behavior", std::string());
  const auto words = kBehaviors.find(behavior);
  if (words == kBehaviors.end()) {
    refuse_tokenizer_kind(path, "its Split has behavior " + behavior);
  }
  return {.pattern = WordPattern(expression_of(split.at("pattern"))),
          .words = words->second,
          .inverted = flag(split, "invert", false)};
}

Metaspace::Prepended prepended_of(const fs::path& path, const Json& metaspace) {
  using Prepended = Metaspace::Prepended;
  const std::string scheme = metaspace.value(
      "prepend_scheme", flag(metaspace, "add_prefix_space", true) ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    refuse_tokenizer_kind(path, "its Metaspace has prepend_scheme " + scheme);
  }
  return scheme == "always" ? Prepended::always
                            : (scheme == "first" ? Prepended::first : Prepended::never);
}

void read_metaspace(const fs::path& path, const Json& part, BytePairParts& parts) {
  if (parts.metaspace || !parts.cuts.empty()) {
    refuse_tokenizer_kind(path, "its Metaspace comes after another pre-tokenizer");
  }
  parts.metaspace = Metaspace{.mark = part.value("replacement", std::string(kSpaceMark)),
                              .prepended = prepended_of(path, part)};
  if (flag(part, "split", true)) {
    parts.cuts.push_back({.pattern = WordPattern(escape_expression(parts.metaspace->mark)),
                          .words = Cut::Words::merged_with_next});
  }
}

void read_pre_tokenizer(const fs::path& path,
                        const Json& part,
                        BytePairParts& parts,
                        bool& maps_bytes) {
  const std::string type = type_of(part);
  if (type == "Sequence") {
    for (const Json& each : part.at("pretokenizers")) {
      read_pre_tokenizer(path, each, parts, maps_bytes);
    }
  } else if (type == "ByteLevel") {
    if (flag(part, "add_prefix_space", true)) {
      if (!parts.cuts.empty() || parts.metaspace) {
        refuse_tokenizer_kind(path, "its ByteLevel adds a space to each word");
      }
      parts.add_prefix_space = true;
    }
    if (flag(part, "use_regex", true)) {
      parts.cuts.push_back({.pattern = WordPattern(kGpt2)});
    }
    maps_bytes = true;
  } else if (type == "Digits") {
    const bool individual = flag(part, "individual_digits", false);
    parts.cuts.push_back({.pattern = WordPattern(individual ? R"(\p{N})" : R"(\p{N}+)")});
  } else if (type == "Split") {
    parts.cuts.push_back(cut_of(path, part));
  } else if (type == "Metaspace") {
    read_metaspace(path, part, parts);
  } else if (!part.is_null()) {
    refuse_tokenizer_kind(path, "its pre-tokenizer is " + type);
  }
}

void read_normalizer(const fs::path& path, const Json& part, TextNormalizer& normalizer) {
  using Form = TextNormalizer::Form;
  static const std::map<std::string, Form, std::less<>> kForms = {
      {"NFC", Form::nfc}, {"NFD", Form::nfd}, {"NFKC", Form::nfkc}, {"NFKD", Form::nfkd}};
  if (part.is_null()) {
    return;
  }
  const std::string type = type_of(part);
  const auto form = kForms.find(type);
  if (type == "Sequence") {
    for (const Json& each : part.at("normalizers")) {
      read_normalizer(path, each, normalizer);
    }
  } else if (form != kForms.end()) {
    normalizer.add(form->second);
  } else if (type == "Prepend") {
    normalizer.add(TextNormalizer::Prepend{part.at("prepend").get<std::string>()});
  } else if (type == "Replace") {
    const Json& pattern = part.at("pattern");
    const std::string by = part.at("content").get<std::string>();
    if (pattern.contains("String")) {
      normalizer.add(
          TextNormalizer::Replace{.what = pattern.at("String").get<std::string>(), .by = by});
    } else {
      normalizer.add(
          TextNormalizer::ReplaceMatches{.what = WordPattern(expression_of(pattern)), .by = by});
    }
  } else {
    refuse_tokenizer_kind(path, "its normalizer is " + type);
  }
}

// What of a token is shown: which mark stands for a space, and whether bytes do for themselves.
struct Decoder {
  std::string mark;
  bool joins_bytes = false;
};

void read_decoder(const fs::path& path, const Json& part, BytePairParts& parts, Decoder& decoder) {
  const std::string type = type_of(part);
  if (type == "Sequence") {
    for (const Json& each : part.at("decoders")) {
      read_decoder(path, each, parts, decoder);
    }
  } else if (type == "Metaspace") {
    decoder.mark = part.value("replacement", std::string(kSpaceMark));
    parts.hides_first_spaces = prepended_of(path, part) != Metaspace::Prepended::never;
  } else if (type == "Replace" && part.at("pattern").contains("String") &&
             part.at("content") == " ") {
    decoder.mark = part.at("pattern").at("String").get<std::string>();
  } else if (type == "ByteFallback") {
    decoder.joins_bytes = true;
  } else if (type == "Strip" && part.value("content", std::string()) == " " &&
             part.value("stop", 0) == 0) {
    parts.hidden_spaces = part.value("start", std::size_t{0});
  } else if (type != "Fuse" && !part.is_null()) {
    refuse_tokenizer_kind(path, "its decoder is " + type);
  }
}

// The byte of <0xE2>.
std::optional<unsigned> byte_of_name(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || !text.ends_with('>')) {
    return {};
  }
  unsigned byte = 0;
  const char* const end = text.data() + 5;
  const auto [stop, error] = std::from_chars(text.data() + 3, end, byte, 16);
  return error == std::errc() && stop == end ? std::optional(byte) : std::nullopt;
}

bool is_one_character(std::string_view text) {
  return !text.empty() && utf8_unit(text).bytes == text.size();
}

// Whether merges make no token in which a mark stands behind another character: then what is cut in
// front of such marks merges as the whole text does, and the longest text is cut.
bool marks_begin_words(const std::unordered_map<std::string, std::int32_t>& vocabulary,
                       std::string_view mark) {
  return vocabulary.contains(std::string(mark)) &&
         std::none_of(vocabulary.begin(), vocabulary.end(), [&](const auto& token) {
           const std::string_view text = token.first;
           std::size_t at = 0;
           while (text.substr(at).starts_with(mark)) {
             at += mark.size();
           }
           return text.find(mark, at) != std::string_view::npos;
         });
}

// The vocabulary of characters and of what they merge to.
void read_characters(const fs::path& path,
                     const Json& root,
                     const std::unordered_map<std::string, std::int32_t>& vocabulary,
                     BytePairParts& parts) {
  const Json& model = root.at("model");
  Decoder decoder;
  read_decoder(path, root.value("decoder", Json()), parts, decoder);
  Characters characters;
  characters.byte_ids.fill(-1);
  characters.fuses_unknown = flag(model, "fuse_unk", false);
  const bool falls_back = flag(model, "byte_fallback", false);
  std::size_t num_bytes = 0;
  for (const auto& [text, id] : vocabulary) {
    std::string shown = decoder.mark.empty() ? text : with_replaced(text, decoder.mark, " ");
    const std::optional<unsigned> byte = byte_of_name(text);
    if (byte && falls_back) {
      characters.byte_ids[*byte] = id;
      ++num_bytes;
    }
    if (byte && decoder.joins_bytes) {
      shown = std::string(1, static_cast<char>(*byte));
    }
    if (is_one_character(text)) {
      characters.ids.emplace(text, id);
    }
    parts.bytes[static_cast<std::size_t>(id)] = std::move(shown);
    parts.special[static_cast<std::size_t>(id)] = false;
  }
  if (falls_back && num_bytes != 0 && num_bytes != characters.byte_ids.size()) {
    refuse_tokenizer(path,
                     fmt::format("it falls back on bytes, and of those it has {}", num_bytes),
                     "fetch it again, whole");
  }
  if (parts.whole_words) {
    parts.words = vocabulary;
  } else if (parts.cuts.empty() && marks_begin_words(vocabulary, kSpaceMark)) {
    parts.cuts.push_back({.pattern = WordPattern(fmt::format("(?:{0})+", kSpaceMark)),
                          .words = Cut::Words::merged_with_next});
  }
  parts.characters = std::move(characters);
}

void read_added(const fs::path& path, const Json& list, BytePairParts& parts) {
  for (const Json& each : list) {
    AddedToken token{.text = each.at("content").get<std::string>(),
                     .id = each.at("id").get<std::int32_t>(),
                     .is_special = flag(each, "special", false),
                     .after_normalizer = flag(each, "normalized", false)};
    if (token.id < 0 || token.id > kMaxTokenId || token.text.empty()) {
      refuse_tokenizer(
          path, fmt::format("its added token {} has no text", token.id), "fetch it again");
    }
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (flag(each, key, false)) {
        refuse_tokenizer_kind(path, fmt::format("its added token {} has {}", token.text, key));
      }
    }
    const auto index = static_cast<std::size_t>(token.id);
    if (!parts.put(token.id, token.text, token.is_special)) {
      parts.bytes[index] = token.text;  // an added token's text is not in a byte-level alphabet
      parts.special[index] = token.is_special;
    }
    if (token.after_normalizer) {
      token.text = parts.normalizer.apply(token.text);  // as what it is looked for in
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
SpecialTokens special_of(const Json& root, const Json& beside, const Json& added) {
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
  // In front of a text stands what the post-processor puts there, and nothing where it puts
  // nothing.
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

}  // namespace

BytePairParts read_tokenizer_json(const fs::path& path, const Json& root, const Json& beside) {
  BytePairParts parts;
  const Json& model = root.at("model");
  const std::string type =
      model.contains("merges") && type_of(model).empty() ? "BPE" : type_of(model);
  if (type != "BPE") {
    refuse_tokenizer_kind(path,
                          "its model is " + (type.empty() ? std::string("of no type") : type));
  }
  read_normalizer(path, root.value("normalizer", Json()), parts.normalizer);
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto found = model.find(key);
    if (found != model.end() && !found->is_null() && *found != "" && *found != 0) {
      refuse_tokenizer_kind(path, fmt::format("its model has {}", key));
    }
  }
  bool maps_bytes = false;
  read_pre_tokenizer(path, root.value("pre_tokenizer", Json()), parts, maps_bytes);
  if (maps_bytes && parts.metaspace) {
    refuse_tokenizer_kind(path, "its pre-tokenizers are Metaspace and ByteLevel");
  }

  std::unordered_map<std::string, std::int32_t> vocabulary;
  for (const auto& [text, value] : model.at("vocab").items()) {
    const auto id = value.get<std::int64_t>();
    if (id < 0 || id > kMaxTokenId) {
      refuse_tokenizer(path, fmt::format("the id of {} is {}", text, id), "fetch it again");
    }
    vocabulary.emplace(text, static_cast<std::int32_t>(id));
    const std::optional<std::string> bytes = maps_bytes ? raw_bytes(text) : std::nullopt;
    if (!parts.put(static_cast<std::int32_t>(id), bytes.value_or(text), !bytes)) {
      refuse_tokenizer(path, fmt::format("two of its tokens have id {}", id), "fetch it again");
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
      refuse_tokenizer(
          path,
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
  if (!maps_bytes) {
    read_characters(path, root, vocabulary, parts);
  }
  if (const auto unknown = model.find("unk_token");
      unknown != model.end() && unknown->is_string()) {
    const auto found = vocabulary.find(unknown->get<std::string>());
    parts.unknown = found == vocabulary.end() ? -1 : found->second;
  }
  const Json added = root.value("added_tokens", Json::array());
  read_added(path, added, parts);
  parts.ids = special_of(root, beside, added);
  return parts;
}

}  // namespace memphis
