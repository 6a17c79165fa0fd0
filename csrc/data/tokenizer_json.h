// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>

#include "csrc/core/json.h"
#include "csrc/data/byte_pair_parts.h"

namespace memphis {

// The BPE of a tokenizer.json of Hugging Face's `tokenizers`. `beside` is the tokenizer_config.json
// that lies there, or null: it says which tokens begin and end a document.
//
// DataError, with the file, where the content asks for what is not implemented; Json's errors where
// it lacks what one has.
BytePairParts read_tokenizer_json(const std::filesystem::path& path,
                                  const nlohmann::json& root,
                                  const nlohmann::json& beside);

}  // namespace memphis
