// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace memphis {

// What an export writes to config.json as `tokenizer_class` where token ids are of memphis's byte
// tokenizer, so that nobody takes them for others'.
constexpr std::string_view kByteTokenizerClass = "MemphisByteTokenizer";

// Of the byte tokenizer's ids those that no byte is, as csrc/data/tokenizer.h has them.
struct ByteIds {
  static constexpr std::int32_t pad = 0;
  static constexpr std::int32_t bos = 1;
  static constexpr std::int32_t eos = 2;
  static constexpr std::int32_t first_byte = 3;
};

// The byte tokenizer for other programs: tokenizer.json of Hugging Face's tokenizers, a BPE without
// a merge, and tokenizer_config.json. A text has bos in front there too. Source: the format of
// github.com/huggingface/tokenizers; bytes are spelled as in GPT-2's vocabulary.
std::string byte_tokenizer_json();
std::string byte_tokenizer_config_json();

// Whose token ids a model folder is of.
struct FolderTokenizer {
  bool is_byte = false;            // memphis's byte tokenizer
  std::vector<std::string> files;  // of another program's, by name: "tokenizer.json"
  std::map<std::string, std::string> contents = {};  // of a run's own, by name
};

// Of bytes is a checkpoint whose run said so or knew nothing else, a folder whose tokenizer.json is
// byte_tokenizer_json(), and one without files of a tokenizer whose config.json says so by
// `tokenizer_class` or whose vocabulary is that of bytes. Then no file is listed.
FolderTokenizer find_tokenizer(const std::filesystem::path& folder, std::int64_t vocab_size);

// The files, for an error, each with what it is where a download left something else in its place.
std::string describe_files(const std::filesystem::path& folder, const FolderTokenizer& tokenizer);

}  // namespace memphis
