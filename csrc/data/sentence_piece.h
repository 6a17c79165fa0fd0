// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "csrc/data/tokenizer.h"

namespace memphis {

// The tokenizer of a SentencePiece model, which is `content`. DataError where it is none.
std::shared_ptr<const Tokenizer> open_sentence_piece(const std::filesystem::path& path,
                                                     const std::string& content);

}  // namespace memphis
