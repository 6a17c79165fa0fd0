// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/data/id_scan.h"
#include "csrc/data/loader.h"
#include "csrc/data/token_stream.h"
#include "csrc/data/tokenizer.h"

namespace memphis {

// One of the texts whose loss is measured.
struct ValidationSet {
  std::string name;  // empty where there is one, of no name
  std::shared_ptr<const TokenStream> stream;
  TokenRange range;
};

// What a run reads. No range of one shares a token with a range of another.
struct Dataset {
  std::vector<TrainingSource> sources;         // one, without a name, or those of a mixture
  std::vector<ValidationSet> validation;       // empty if nothing is held out
  std::shared_ptr<const Tokenizer> tokenizer;  // null where ids stand for no known text
  std::vector<std::string> warnings;           // of the text, for whoever speaks for the job
  std::string fingerprint;                     // of what is trained on, and in which shares
  std::string validation_fingerprint;          // of the validation sets
  bool has_lines = false;                      // whether any of its files is lines of JSON
};

struct DatasetOptions {
  // Below which ids of corpora that were tokenized before must be, and that holds the tokenizer's.
  std::int64_t vocab_size = std::int64_t{1} << 30U;
  // Masked by the model, so that no text may be of it; -1: none. Checked where the tokenizer is not
  // of bytes.
  std::int64_t pad_id = -1;
};

// ConfigError where the model has too few rows for the tokenizer, which is null where there is
// none, or masks an id of its text.
void require_fitting(const Tokenizer* tokenizer,
                     const DataConfig& config,
                     const DatasetOptions& options);

// ConfigError where data.field or data.prompt_field names a field and no file is of lines that have
// any.
void require_fields_used(const DataConfig& config, bool has_lines);

// Opens data.train and data.validation; says in the log what was found and what was passed over,
// and warns where that is much of a corpus, where text is not UTF-8, and where a text of validation
// is trained on under another name. `run_dir` is passed over, whatever it lies in.
//
// Text that is no plain file of bytes, of JSON, compressed or for a tokenizer, is tokenized at the
// first start into run_dir/tokens, and read from there. What was learnt by reading files whole is
// kept there, so that the next start does not read them again.
//
// Without data.train the text is that of `default_roots`, which the caller chooses. Without
// data.validation the last data.held_out of the training tokens of each source is held out:
// training has the first floor(tokens * (1 - held_out)). A file of data.validation is never trained
// on, even if data.train covers it; one that both name is a ConfigError, as is data.train left out
// where there are no default_roots.
//
// DataError where a file or an entry cannot be read, where training is left with fewer than
// sequence_length + 1 tokens, or where validation is asked for and has no token to predict.
// ConfigError where tokenizer and model do not fit.
Dataset open_dataset(const DataConfig& config,
                     std::int64_t sequence_length,
                     const std::vector<std::string>& default_roots,
                     const std::filesystem::path& run_dir = {},
                     const DatasetOptions& options = {});

}  // namespace memphis
