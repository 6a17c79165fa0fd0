// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/data/text_files.h"

namespace memphis {

// A key's entries: its one text, or one of its named ones.
struct TextPart {
  std::string key;   // "data.train", or "data.train[1]"
  std::string name;  // empty for the one text
  double weight = 1;
  TextFiles list;
};

// The files of a config: what is trained on, and what is held out of it. None is in both.
struct TextLists {
  std::vector<TextPart> train;
  std::vector<TextPart> validation;
  std::vector<std::string> said;  // of files that are in both as given, a line each
};

// As open_dataset says (dataset.h): what both keys name is a ConfigError, as is no text at all.
// DataError where an entry cannot be read.
TextLists list_texts(const DataConfig& config,
                     const std::vector<std::string>& default_roots,
                     const std::filesystem::path& run_dir);

}  // namespace memphis
