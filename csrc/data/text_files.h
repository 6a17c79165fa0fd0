// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace memphis {

struct TextFile {
  std::filesystem::path path;  // absolute, without symbolic links
  // The config names this very file, so it must be text; one that a directory or a pattern brought
  // along is passed over if it is not.
  bool named = false;
};

struct TextFiles {
  std::vector<TextFile> files;  // sorted by path, each once
  std::int64_t num_hidden = 0;  // entries passed over; a hidden directory is one
};

// Expands the entries of data.train or data.validation: a file; a directory, with all regular files
// below it, symbolic links to directories not followed; or a pattern of glob(3), where `**` is no
// more than `*`. Hidden files and directories are passed over unless an entry names them.
// DataError, which names `key`, where an entry matches nothing or cannot be read.
TextFiles list_text_files(std::string_view key, const std::vector<std::string>& entries);

}  // namespace memphis
