// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>

#include "csrc/data/file_records.h"
#include "csrc/data/id_column.h"
#include "csrc/data/token_stream.h"

namespace memphis {

// Where a document begins in a file without an index.
struct Separator {
  std::int32_t first = -1;  // documents begin with this id
  std::int32_t last = -1;   // or end with this one
};

// A file of llm.c (16 bits, or 32 as of Llama 3), or of llmq (32 bits, with masks and positions). A
// mask of llmq belongs to inputs: it says whether what follows a token is learnt.
// Sources: karpathy/llm.c, dev/data/data_common.py; IST-DASLab/llmq, scripts/tokenize_data.py.
std::unique_ptr<const TokenStream> open_token_file(const std::filesystem::path& path,
                                                   Separator separator,
                                                   std::int64_t vocab_size,
                                                   FileRecords& records);

// As megatron_ids.
IdColumn token_file_ids(const std::filesystem::path& path, std::int64_t vocab_size);

}  // namespace memphis
