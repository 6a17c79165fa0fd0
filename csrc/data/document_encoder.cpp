// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/document_encoder.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/json.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

using Json = nlohmann::json;

std::string place_of(const CorpusFile& file, const RawDocument& raw) {
  return raw.line == 0
             ? file.path.string()
             : fmt::format("{}, line {}, byte {}", file.path.string(), raw.line, raw.offset);
}

// The text of one field, or what is wrong.
const std::string* field_of(const Json& record,
                            const std::string& name,
                            const std::string& key,
                            std::string& problem) {
  const auto found = record.find(name);
  if (found == record.end()) {
    std::string fields;
    for (const auto& [other, value] : record.items()) {
      fields += (fields.empty() ? "" : ", ") + other;
      if (fields.size() > 200) {
        fields += ", ...";
        break;
      }
    }
    problem = fmt::format("has no field {} (its fields are {}); set {} to the one of the text",
                          name,
                          fields.empty() ? "none" : fields,
                          key);
    return nullptr;
  }
  if (!found->is_string()) {
    problem = fmt::format(
        "has a field {} that is no string but {} (a text is a string); set {} to "
        "the one of the text",
        name,
        found->type_name(),
        key);
    return nullptr;
  }
  return &found->get_ref<const std::string&>();
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

}  // namespace

DocumentEncoder::DocumentEncoder(const std::vector<CorpusFile>& files,
                                 std::shared_ptr<const Tokenizer> tokenizer,
                                 TokenizeOptions options)
    : files_(files), tokenizer_(std::move(tokenizer)), options_(std::move(options)) {}

void DocumentEncoder::put(std::string_view text, bool learnt, EncodedDocuments& out) const {
  std::uint64_t replaced = 0;
  if (tokenizer_->kind() != ByteTokenizer::kName && !is_utf8(text)) {
    (void)with_replacements(text, replaced);
  }
  out.counts.replaced += replaced;
  tokenizer_->append(text, out.ids);
  out.learnt.resize(is_masked() ? out.ids.size() : 0, learnt ? 1 : 0);
}

void DocumentEncoder::append(const RawDocument& raw, EncodedDocuments& out) const {
  const CorpusFile& from = files_[raw.file];
  std::optional<Json> record;
  const std::string* text = &raw.bytes;
  const std::string* response = nullptr;
  if (from.framing == Framing::lines) {
    if (is_blank(raw.bytes)) {
      ++out.counts.blank_lines;
      return;
    }
    std::string problem;
    try {
      record = Json::parse(raw.bytes);
    } catch (const Json::exception& error) {
      const std::string_view why = error.what();
      problem = fmt::format("is not JSON ({}); correct it or remove the line",
                            why.substr(std::min(why.find("] ") + 2, why.size())));
    }
    if (record && !record->is_object()) {
      problem = fmt::format(
          "is no object but {} (a line is an object with the text in a field); "
          "correct it or remove the line",
          record->type_name());
    }
    if (problem.empty()) {
      text = is_masked()
                 ? field_of(*record, options_.prompt_field, name_of("prompt_field"), problem)
                 : field_of(*record, options_.field, name_of("field"), problem);
    }
    if (problem.empty() && is_masked()) {
      response = field_of(*record, options_.response_field, name_of("response_field"), problem);
    }
    if (!problem.empty()) {
      out.problem = place_of(from, raw) + " " + problem;
      return;
    }
  } else if (const std::size_t nul = raw.bytes.find('\0'); nul != std::string::npos) {
    out.problem = fmt::format(
        "{} has a NUL byte at {} (so it is not text); leave it out, or remove such bytes, as in "
        "`tr -d '\\0'`",
        from.path.string(),
        nul);
    return;
  }
  if (text->empty() && (response == nullptr || response->empty())) {
    ++out.counts.empty_documents;
    return;
  }
  const std::size_t begin = out.ids.size();
  const SpecialTokens special = tokenizer_->special();
  if (options_.bos && special.bos >= 0) {
    put_special(special.bos, false, out);
  }
  put(*text, response == nullptr, out);  // a text that is no line has no prompt
  if (response != nullptr) {
    put(*response, true, out);
  }
  if (options_.eos && special.eos >= 0) {
    put_special(special.eos, true, out);
  }
  const std::size_t length = out.ids.size() - begin;
  if (length == 0) {
    ++out.counts.empty_documents;
    return;
  }
  if (length > INT32_MAX) {
    out.problem = fmt::format(
        "{} has {} tokens (a sequence of a Megatron dataset has at most "
        "2^31 - 1); split it into several",
        place_of(from, raw),
        length);
    return;
  }
  out.lengths.push_back(static_cast<std::int32_t>(length));
  out.counts.text_bytes += text->size() + (response == nullptr ? 0 : response->size());
  ++out.counts.documents;
}

// "data.prompt_field", or "--prompt-field".
std::string DocumentEncoder::name_of(std::string_view field) const {
  std::string name = (options_.named_as_options ? "--" : "data.") + std::string(field);
  if (options_.named_as_options) {
    std::replace(name.begin(), name.end(), '_', '-');
  }
  return name;
}

void DocumentEncoder::put_special(std::int32_t id, bool learnt, EncodedDocuments& out) const {
  out.ids.push_back(id);
  out.learnt.resize(is_masked() ? out.ids.size() : 0, learnt ? 1 : 0);
}

}  // namespace memphis
