// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/run_tokenizer.h"

namespace memphis {

FolderTokenizer tokenizer_to_export(const Tokenizer* tokenizer) {
  FolderTokenizer exported;
  if (tokenizer == nullptr) {
    return exported;
  }
  exported.is_byte = tokenizer->kind() == ByteTokenizer::kName;
  for (const TokenizerFile& file : tokenizer->files()) {
    exported.contents[file.name] = file.content;
  }
  return exported;
}

}  // namespace memphis
