// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>

namespace memphis {

// A new index of a Megatron dataset in which each document is a sequence, durable when this returns.
// `lengths` holds the documents' numbers of tokens, 32 bits each; `wide` where an id has 32 bits, else
// 16. No more than a piece of either is in memory. PreflightError where it cannot be written.
//
// Source      megatron/core/datasets/indexed_dataset.py, version 1.
void write_megatron_index(const std::filesystem::path& path,
                          const std::filesystem::path& lengths,
                          std::uint64_t num_documents,
                          bool wide);

}  // namespace memphis
