// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "csrc/data/tokenizer.h"

namespace memphis {

// Told from the content: an object of JSON.
bool is_tokenizer_json(std::string_view content);

// The BPE of a tokenizer.json (Hugging Face), a tokenizer.tok.json (Grok-2), or a
// tiktoken file, which is `content`. Ids equal those of `tokenizers`' encode without special tokens
// around the text, and of tiktoken's encode_ordinary.
//
// What lies beside a file in its folder is read with it: tokenizer_config.json says which tokens
// begin and end a document and, of tiktoken's, `pattern`, which an export of ours has.
//
// DataError, with the file, where the content is damaged or asks for what is not implemented here.
std::shared_ptr<const Tokenizer> open_byte_pair_tokenizer(const std::filesystem::path& path,
                                                          const std::string& content,
                                                          const std::string& pattern);

}  // namespace memphis
