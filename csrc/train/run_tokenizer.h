// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/checkpoint/folder_tokenizer.h"
#include "csrc/data/tokenizer.h"

namespace memphis {

// What an export of a run has of its tokenizer: a folder that opens as the same one.
FolderTokenizer tokenizer_to_export(const Tokenizer* tokenizer);

}  // namespace memphis
