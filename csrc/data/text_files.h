// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace memphis {

struct TextFile {
  // How the config comes to it. What an entry or a pattern asks for must be text; what a directory
  // brings along is passed over if it is not.
  enum class Origin : std::uint8_t { walked, matched, named };

  std::filesystem::path path;      // absolute, without symbolic links
  Origin origin = Origin::walked;  // the latest of the enumerators that applies
};

// What is not trained on although it lies where the text does.
struct PassedOver {
  std::filesystem::path path;
  std::string reason;           // "it holds a Parquet table"
  std::uint64_t num_bytes = 0;  // that the corpus has lost
};

struct TextFiles {
  std::vector<TextFile> files;          // sorted by path, each once
  std::vector<PassedOver> passed_over;  // without bytes: links to nothing, pipes, memphis's own
  std::vector<std::filesystem::path> hidden;    // passed over; a hidden directory is one
  std::vector<std::filesystem::path> repeated;  // named by more than one entry
};

// Expands the entries of data.train or data.validation: a file; a directory, with all regular files
// below it; or a pattern (core/path_pattern.h), whose directories are walked in the same way.
// Symbolic links are followed. Hidden files and directories are passed over unless an entry names
// them. So is what changes while a run goes on, whose order of samples would change with it:
// `run_dir`, other run directories of memphis, checkpoints, and the file that this process's output
// goes to; a file that an entry names is read nevertheless.
//
// DataError, which names `key`, where an entry matches nothing or cannot be read.
TextFiles list_text_files(std::string_view key,
                          const std::vector<std::string>& entries,
                          const std::filesystem::path& run_dir = {});

}  // namespace memphis
