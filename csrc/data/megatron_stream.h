// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>

#include "csrc/data/file_records.h"
#include "csrc/data/id_column.h"
#include "csrc/data/token_stream.h"

// Corpora that were tokenized before: their files say where documents begin, and are read in place.
// A file is checked as a whole before the first token is asked for: its header, its length, its
// index, and that every id is below the vocabulary's size. What was found is kept in `records`, so
// that a run that goes on does not read it all again.
//
// DataError, with the file and the byte, where something is wrong; ids that are no whole numbers in
// [0, vocab_size) too.
namespace memphis {

// The dataset of a Megatron-style index, NAME.idx beside NAME.bin; either may be given. All types
// of ids are read. Beside them may lie NAME.mask, which memphis tokenize writes: behind 16 bytes of
// magic a byte for each token, 1 where it is to be learnt. Source:
// megatron/core/datasets/indexed_dataset.py, version 1.
std::unique_ptr<const TokenStream> open_megatron(const std::filesystem::path& path,
                                                 std::int64_t vocab_size,
                                                 FileRecords& records);

// Its ids, of which the header alone is checked: what a scan of them reads.
IdColumn megatron_ids(const std::filesystem::path& path);

constexpr std::string_view kMaskMagic{"MEMPHIS MASK\0\0\0\1", 16};

}  // namespace memphis
