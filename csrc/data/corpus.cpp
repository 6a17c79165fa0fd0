// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/corpus.h"

#include <algorithm>
#include <set>
#include <span>
#include <string_view>
#include <system_error>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/data/text_format.h"
#include "csrc/data/text_stream.h"
#include "csrc/data/tokenize.h"
#include "csrc/data/tokenizer.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

std::string_view first_line(std::span<const std::byte> head) {
  std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
  if (text.starts_with(kUtf8Mark)) {
    text.remove_prefix(kUtf8Mark.size());
  }
  const std::size_t begin = std::min(text.find_first_not_of(" \t\r\n"), text.size());
  return text.substr(begin, text.find('\n', begin) - begin);
}

// Whether the first line that is JSON has the fields that are asked for: lines of JSON that lie in
// a folder for another purpose have not. One that is damaged says nothing of the others.
bool has_fields(std::span<const std::byte> head, const DataConfig& config) {
  const std::string& field = config.prompt_field.empty() ? config.field : config.prompt_field;
  while (true) {
    const std::string_view line = first_line(head);
    if (line.empty()) {
      return false;
    }
    const auto end = static_cast<std::size_t>(line.data() + line.size() -
                                              reinterpret_cast<const char*>(head.data()));
    if (end == head.size() && head.size() >= kFormatBytes) {
      return true;  // longer than what was read: told when it is
    }
    if (const auto record = parse_json(line)) {
      return record->is_object() && record->contains(field);
    }
    head = head.subspan(end);
  }
}

// Whether a file that an entry asks for, and whose name says nothing, is of lines of which one
// further on has a fault: its first is a record with the field of texts, or looks like one where
// the config names such a field.
bool begins_with_record(std::span<const std::byte> head, const DataConfig& config) {
  const std::string_view line = first_line(head);
  if (!line.starts_with('{')) {
    return false;
  }
  if (!config.prompt_field.empty() || config.field != DataConfig().field) {
    return true;
  }
  const auto record = parse_json(line);
  return record && record->is_object() && record->contains(config.field);
}

bool is_one_record(std::span<const std::byte> head, const DataConfig& config) {
  const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
  const std::size_t end = std::min(text.find('\n'), text.size());
  return text.find_first_not_of(" \t\r\n", end) == std::string_view::npos &&
         has_fields(head, config);
}

}  // namespace

bool has_lines(const SortedFiles& sorted) {
  return std::any_of(sorted.documents.begin(), sorted.documents.end(), [](const CorpusFile& file) {
    return file.framing == Framing::lines;
  });
}

SortedFiles sort_files(const std::vector<TextFile>& files, const DataConfig& config) {
  using Kind = TextFormat::Kind;
  SortedFiles sorted;
  std::set<std::filesystem::path> indices;
  const bool is_bytes = config.tokenizer == ByteTokenizer::kName;
  const auto add_text = [&](const TextFile& file, Packing packing) {
    if (is_bytes && packing == Packing::none) {
      sorted.text.push_back(file);
    } else {
      sorted.documents.push_back(
          {.path = file.path, .packing = packing, .framing = Framing::whole});
    }
  };
  for (const TextFile& file : files) {
    const InputFile input(file.path);
    if (input.size() == 0) {
      sorted.text.push_back(file);  // passed over or refused there
      continue;
    }
    const bool walked = file.origin == TextFile::Origin::walked;
    std::vector<std::byte> head = input.beginning(kFormatBytes);
    auto format = recognise_format(file.path, head, head.size() == input.size());
    Packing packing = Packing::none;
    if (format && (format->kind == Kind::gzip || format->kind == Kind::zstd)) {
      packing = format->kind == Kind::gzip ? Packing::gzip : Packing::zstd;
      try {
        head = unpacked_beginning({.path = file.path, .packing = packing}, kFormatBytes);
      } catch (const DataError&) {
        if (!walked) {
          throw;
        }
        sorted.text.push_back(file);
        continue;
      }
      const auto inner = recognise_format(file.path.stem(), head, head.size() < kFormatBytes);
      const bool readable = !inner || inner->kind == Kind::json_lines ||
                            (inner->kind == Kind::json_document && is_one_record(head, config));
      format = readable ? inner : format;
    }
    if (!format && !walked && begins_with_record(head, config)) {
      format = TextFormat{.kind = Kind::json_lines, .name = {}, .advice = {}};
    }
    // Of lines of JSON there may be one.
    if (format && format->kind == Kind::json_document && (!walked || packing != Packing::none) &&
        is_one_record(head, config)) {
      format->kind = Kind::json_lines;
    }
    if (!format || (walked && format->kind == Kind::json_document)) {
      std::filesystem::path index = file.path;  // "a.meta.json" beside "a.idx"
      index.replace_extension().replace_extension(".idx");
      std::error_code ignored;
      if (walked && file.path.string().ends_with(kTokensMetaSuffix) &&
          std::filesystem::exists(index, ignored)) {
        continue;
      }
      add_text(file, packing);
      continue;
    }
    switch (format->kind) {
      case Kind::json_lines:
        if (walked && !has_fields(head, config)) {
          sorted.text.push_back(file);
        } else {
          sorted.documents.push_back(
              {.path = file.path, .packing = packing, .framing = Framing::lines});
        }
        break;
      case Kind::megatron_index:
      case Kind::megatron_tokens: {
        std::filesystem::path index = file.path;
        index.replace_extension(".idx");
        if (indices.insert(index).second) {
          sorted.megatron.push_back(index);
        }
        break;
      }
      case Kind::token_file:
        sorted.token_files.push_back(file.path);
        break;
      default:
        if (walked && file.path.extension() == ".mask" &&
            std::filesystem::exists(std::filesystem::path(file.path).replace_extension(".idx"))) {
          break;  // opened with its dataset
        }
        sorted.text.push_back(file);
    }
  }
  return sorted;
}

std::vector<CorpusFile> list_corpus(const std::vector<std::string>& entries,
                                    const TokenizeOptions& options) {
  const TextFiles list = list_text_files("the corpus", entries);
  DataConfig config;
  config.tokenizer = "a file";  // every text is tokenized
  config.field = options.field;
  config.prompt_field = options.prompt_field;
  config.response_field = options.response_field;
  SortedFiles sorted = sort_files(list.files, config);
  for (const auto* tokens : {&sorted.megatron, &sorted.token_files}) {
    for (const std::filesystem::path& path : *tokens) {
      const auto file = std::find_if(list.files.begin(), list.files.end(), [&](const TextFile& f) {
        return f.path.stem() == path.stem();
      });
      if (file != list.files.end() && file->origin == TextFile::Origin::named) {
        throw DataError(path.string() +
                        " holds tokens (there is no text to tokenize); give it to "
                        "data.train as it is");
      }
      log_info("passed over {} (it holds tokens)", path.string());
    }
  }
  const TextStream others(sorted.text);  // refuses what an entry names and is no text
  for (const PassedOver& file : others.passed_over()) {
    log_info("passed over {} ({})", file.path.string(), file.reason);
  }
  if (sorted.documents.empty()) {
    throw DataError(
        "the corpus holds no text (its entries are files, folders and patterns of text "
        "or lines of JSON); name some");
  }
  return std::move(sorted.documents);
}

}  // namespace memphis
