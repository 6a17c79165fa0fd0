// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/byte_pair_parts.h"
#include "csrc/data/tokenizer.h"

namespace memphis {

// Encodes and decodes with the parts of a file, which `path` names in errors.
std::shared_ptr<const Tokenizer> make_byte_pair_tokenizer(std::filesystem::path path,
                                                          std::string fingerprint,
                                                          std::vector<TokenizerFile> files,
                                                          BytePairParts parts);

}  // namespace memphis
