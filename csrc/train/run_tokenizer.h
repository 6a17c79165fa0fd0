// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/checkpoint/folder_tokenizer.h"
#include "csrc/data/tokenizer.h"

namespace memphis {

// What an export of a run has of its tokenizer: of another than that of bytes its files, under names that
// open_tokenizer knows in a folder. A tiktoken file's pattern is in none.
FolderTokenizer tokenizer_to_export(const Tokenizer* tokenizer);

}  // namespace memphis
