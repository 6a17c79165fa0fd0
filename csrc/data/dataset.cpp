// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "csrc/core/error.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

std::shared_ptr<const TokenStream> open_stream(std::string_view key, const TextFiles& list) {
  auto stream = std::make_shared<const TokenStream>(list.files);
  spdlog::info(
      "{}: {} documents, {} tokens, fingerprint {}; passed over {} hidden entries and {} "
      "files that are not text",
      key,
      stream->num_documents(),
      stream->num_tokens(),
      stream->fingerprint(),
      list.num_hidden,
      stream->num_not_text());
  return stream;
}

// A loss on text that was trained on says nothing about other text.
void exclude(TextFiles& list, const TextFiles& validation) {
  const auto in_validation = [&](const TextFile& file) {
    const auto& files = validation.files;
    const auto found = std::lower_bound(
        files.begin(), files.end(), file, [](const TextFile& a, const TextFile& b) {
          return a.path < b.path;
        });
    return found != files.end() && found->path == file.path;
  };
  const std::size_t num_shared = std::erase_if(list.files, in_validation);
  if (num_shared > 0) {
    spdlog::info("data.train: {} files are in data.validation too and are not trained on",
                 num_shared);
  }
}

void require_tokens(std::string_view what,
                    std::uint64_t num_tokens,
                    std::uint64_t needed,
                    std::string_view why,
                    std::string_view remedy) {
  if (num_tokens < needed) {
    throw DataError(std::string(what) + " holds " + std::to_string(num_tokens) + " of the " +
                    std::to_string(needed) + " tokens that it needs (" + std::string(why) + "); " +
                    std::string(remedy));
  }
}

}  // namespace

Dataset open_dataset(const DataConfig& config,
                     std::int64_t sequence_length,
                     const std::vector<std::string>& default_roots) {
  require(sequence_length >= 1, "a sequence has at least one token");
  require(config.held_out >= 0 && config.held_out < 1, "data.held_out is in [0, 1)");

  TextFiles train = config.train.empty()
                        ? list_text_files("the default of data.train", default_roots)
                        : list_text_files("data.train", config.train);
  Dataset dataset;
  if (config.validation.empty()) {
    dataset.train = open_stream("data.train", train);
    dataset.validation = dataset.train;
    const std::uint64_t total = dataset.train->num_tokens();
    const auto cut =
        static_cast<std::uint64_t>(std::floor(static_cast<double>(total) * (1 - config.held_out)));
    dataset.train_range = {.begin = 0, .end = cut};
    dataset.validation_range = {.begin = cut, .end = total};
  } else {
    const TextFiles validation = list_text_files("data.validation", config.validation);
    exclude(train, validation);
    dataset.train = open_stream("data.train", train);
    dataset.validation = open_stream("data.validation", validation);
    dataset.train_range = {.begin = 0, .end = dataset.train->num_tokens()};
    dataset.validation_range = {.begin = 0, .end = dataset.validation->num_tokens()};
  }

  require_tokens(
      "the training part of data.train",
      dataset.train_range.size(),
      static_cast<std::uint64_t>(sequence_length) + 1,
      "batch.sequence_length " + std::to_string(sequence_length) + " and the token after it",
      "add text, or lower batch.sequence_length or data.held_out");
  if (!config.validation.empty() || config.held_out > 0) {
    require_tokens(config.validation.empty() ? "the held-out end of data.train" : "data.validation",
                   dataset.validation_range.size(),
                   2,
                   "one to read and one to predict",
                   "add text, or set data.held_out to 0 to train without validation");
  }
  return dataset;
}

}  // namespace memphis
