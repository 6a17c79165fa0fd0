// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "csrc/core/file.h"
#include "csrc/data/file_records.h"
#include "csrc/data/token_stream.h"

// Corpora that were tokenized before: their files say where documents begin, and are read in place.
// A file is checked as a whole before the first token is asked for: its header, its length, its index, and
// that every id is below the vocabulary's size. What was found is kept in `records`, so that a run
// that goes on does not read it all again.
//
// DataError, with the file and the byte, where something is wrong; ids that are no whole numbers in
// [0, vocab_size) too.
namespace memphis {

// Numbers in a file, one after another.
struct IdColumn {
  enum class Type : std::uint8_t { u8, i8, i16, i32, i64, f64, f32, u16, u32 };

  InputFile file;
  std::uint64_t offset = 0;  // of the first, in bytes
  std::uint64_t count = 0;
  Type type = Type::i32;

  std::uint64_t item_bytes() const;
  // Ids [begin, begin + out.size()). DataError for one that is outside [0, vocab_size).
  void read(std::uint64_t begin, std::span<std::int32_t> out, std::int64_t vocab_size) const;
};

// The dataset of a Megatron-style index, NAME.idx beside NAME.bin; either may be given. All types of
// ids are read. Beside them may lie NAME.mask, which memphis tokenize writes: behind 16 bytes of
// magic a byte for each token, 1 where it is to be learnt.
// Source: megatron/core/datasets/indexed_dataset.py, version 1.
std::unique_ptr<const TokenStream> open_megatron(const std::filesystem::path& path,
                                                 std::int64_t vocab_size,
                                                 FileRecords& records);

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

// Streams one behind the other. Requires one at least.
std::shared_ptr<const TokenStream> join(std::vector<std::shared_ptr<const TokenStream>> streams);

constexpr std::string_view kMaskMagic{"MEMPHIS MASK\0\0\0\1", 16};

}  // namespace memphis
