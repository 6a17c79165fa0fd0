// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "csrc/data/tokenizer.h"

namespace memphis {

// In a run's directory the folder of its tokenizer's files: what its ids mean is known for as long
// as its checkpoints are there, whatever becomes of the path that data.tokenizer names.
std::filesystem::path kept_tokenizer(const std::filesystem::path& run_dir);

// Writes them there, durable on return, unless they are there already; removes those of a run that
// was there before where the tokenizer has no files. One process calls it.
//
// Errors      PreflightError with the system's reason.
void keep_tokenizer(const std::filesystem::path& run_dir, const Tokenizer* tokenizer);

// open_tokenizer of data.tokenizer, or, where nothing is at its path any more, of what was kept. A
// tokenizer that lies there and is another one is opened all the same: a checkpoint has the
// fingerprint of its own.
std::shared_ptr<const Tokenizer> open_tokenizer_of_run(const std::string& name,
                                                       const std::string& pattern,
                                                       const std::filesystem::path& run_dir);

// Whether that opens what was kept.
bool reads_kept_tokenizer(const std::string& name, const std::filesystem::path& run_dir);

}  // namespace memphis
