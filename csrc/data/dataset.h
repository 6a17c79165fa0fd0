// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/data/token_stream.h"

namespace memphis {

// What a run reads. The two ranges never share a token.
struct Dataset {
  std::shared_ptr<const TokenStream> train;
  TokenRange train_range;
  std::shared_ptr<const TokenStream> validation;  // `train` itself where its end is held out
  TokenRange validation_range;                    // empty if nothing is held out
  std::vector<std::string> warnings;              // of the text, for whoever speaks for the job
};

// Opens data.train and data.validation; says in the log what was found and what was passed over,
// and warns where that is much of a corpus, where text is not UTF-8, and where a text of validation
// is trained on under another name. `run_dir` is passed over, whatever it lies in.
//
// Without data.train the text is that of `default_roots`, which the caller chooses. Without
// data.validation the last data.held_out of the training tokens is held out: training has the first
// floor(tokens * (1 - held_out)). A file of data.validation is never trained on, even if data.train
// covers it; one that both name is a ConfigError, as is data.train left out where there are no
// default_roots.
//
// DataError where a file or an entry cannot be read, where training is left with fewer than
// sequence_length + 1 tokens, or where validation is asked for and has no token to predict.
Dataset open_dataset(const DataConfig& config,
                     std::int64_t sequence_length,
                     const std::vector<std::string>& default_roots,
                     const std::filesystem::path& run_dir = {});

}  // namespace memphis
