// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "csrc/data/text_files.h"
#include "csrc/data/text_stream.h"

// What a user is told of the text that was found: in the log, or in `warnings` where much of it is
// not trained on, or not as it was meant.
namespace memphis {

// What was looked at and is not trained on, the largest first; empty if all is.
struct TextLoss {
  std::string text;  // "2 of 7 files, 50 of 70 bytes (71.4 %): a.gz (it holds ..., 50 bytes)"
  double share = 0;
};

TextLoss loss_of(const TextStream& stream);

// What was found beside text, and in text beside UTF-8. `key` is that of the config.
void describe(std::string_view key,
              const TextFiles& list,
              const TextStream& stream,
              std::vector<std::string>& warnings);

// Of texts of validation that are trained on under another name.
void warn_of_copies(const TextStream& train,
                    const TextStream& validation,
                    std::vector<std::string>& warnings);

}  // namespace memphis
