// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

// What a file holds where that is not plain text, told from its first bytes: people keep corpora
// compressed, in tables, in records and as tokens, and a model learns whatever bytes it is given.
namespace memphis {

struct TextFormat {
  enum class Kind : std::uint8_t {
    other,          // not to be trained on as it is
    json_records,   // nor are the brackets, keys and numbers around texts
    json_document,  // one JSON value: a part of a source tree, or a corpus
    // What is read, each in its own way.
    json_lines,
    gzip,
    zstd,
    megatron_index,
    megatron_tokens,
    token_file,  // of llm.c or llmq
  };

  Kind kind = Kind::other;
  std::string name;    // "gzip-compressed data"
  std::string advice;  // "decompress it, as in `gunzip -k x.gz`, and name the result"
};

// `head` is the file's beginning: enough are kFormatBytes, or all of it. Nothing where it looks like
// text, which it need not be further on. What is named .jsonl or .ndjson and is nothing else is
// lines of JSON, also where the first of them are none.
constexpr std::size_t kFormatBytes = std::size_t{64} * 1024;
std::optional<TextFormat> recognise_format(const std::filesystem::path& path,
                                           std::span<const std::byte> head,
                                           bool is_whole);

// Bytes of `head` that belong to no UTF-8 character; a character that it ends within is one.
std::size_t count_bytes_outside_utf8(std::span<const std::byte> head);

// As a shell takes it: in quotes where it needs them.
std::string shell_word(const std::string& text);

}  // namespace memphis
