// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

// How many of a list a line names; the rest are counted.
constexpr std::size_t kMaxNamed = 8;
// Of the bytes of a corpus, from which on it is worth a warning that they are not trained on, and of
// those of a file, that they are not UTF-8.
constexpr double kMuchOfCorpus = 0.02;
constexpr double kMuchOfFile = 0.01;

// "a, b and 3 more"
template <class Item, class Describe>
std::string list_of(const std::vector<Item>& items, const Describe& describe) {
  std::string text;
  for (std::size_t i = 0; i < std::min(items.size(), kMaxNamed); ++i) {
    text += (i == 0 ? "" : ", ") + describe(items[i]);
  }
  if (items.size() > kMaxNamed) {
    text += fmt::format(" and {} more", items.size() - kMaxNamed);
  }
  return text;
}

std::string name_of_path(const std::filesystem::path& path) {
  return path.string();
}

// What was looked at and is not trained on, the largest first; empty if all is.
struct Loss {
  std::string text;  // "2 of 7 files, 50 of 70 bytes (71.4 %): a.gz (it holds ..., 50 bytes)"
  double share = 0;
};

Loss loss_of(const TokenStream& stream) {
  std::vector<PassedOver> lost = stream.passed_over();
  if (lost.empty()) {
    return {};
  }
  std::stable_sort(lost.begin(), lost.end(), [](const PassedOver& a, const PassedOver& b) {
    return a.num_bytes > b.num_bytes;
  });
  std::uint64_t lost_bytes = 0;
  for (const PassedOver& file : lost) {
    lost_bytes += file.num_bytes;
  }
  std::uint64_t all_bytes = lost_bytes;
  for (const Document& document : stream.documents()) {
    all_bytes += document.num_bytes;
  }
  Loss loss;
  loss.share =
      all_bytes == 0 ? 0 : static_cast<double>(lost_bytes) / static_cast<double>(all_bytes);
  loss.text =
      fmt::format("{} of {} files, {} of {} bytes ({:.1f} %): ",
                  lost.size(),
                  lost.size() + stream.num_documents(),
                  lost_bytes,
                  all_bytes,
                  100 * loss.share) +
      list_of(lost, [](const PassedOver& file) {
        return fmt::format("{} ({}; {} bytes)", file.path.string(), file.reason, file.num_bytes);
      });
  return loss;
}

// What was found beside text, and in text beside UTF-8.
void describe(std::string_view key,
              const TextFiles& list,
              const TokenStream& stream,
              std::vector<std::string>& warnings) {
  log_info("{}: {} documents, {} tokens, fingerprint {}",
           key,
           stream.num_documents(),
           stream.num_tokens(),
           stream.fingerprint());
  if (const Loss loss = loss_of(stream); !loss.text.empty()) {
    const std::string text = fmt::format("{}: passed over {}", key, loss.text);
    if (loss.share > kMuchOfCorpus) {
      warnings.push_back(text);
    } else {
      log_info("{}", text);
    }
  }
  if (!list.passed_over.empty()) {
    log_info("{}: passed over {}", key, list_of(list.passed_over, [](const PassedOver& other) {
               return fmt::format("{} ({})", other.path.string(), other.reason);
             }));
  }
  if (!list.hidden.empty()) {
    log_info("{}: passed over {} hidden entries ({}), which are read where they are named",
             key,
             list.hidden.size(),
             list_of(list.hidden, name_of_path));
  }
  if (!list.repeated.empty()) {
    log_info("{}: more than one entry names {}; a file is read once",
             key,
             list_of(list.repeated, name_of_path));
  }
  std::vector<std::filesystem::path> marked;
  std::vector<std::string> other_encoding;
  for (const Document& document : stream.documents()) {
    if (document.begins_with_mark) {
      marked.push_back(document.path);
    }
    if (document.share_outside_utf8 > kMuchOfFile) {
      other_encoding.push_back(
          fmt::format("{} ({:.0f} %)", document.path.string(), 100 * document.share_outside_utf8));
    }
  }
  if (!marked.empty()) {
    log_info(
        "{}: {} files begin with a byte order mark, three bytes that are trained on as any others "
        "(remove them, as in `sed -i '1s/^\\xEF\\xBB\\xBF//'`): {}",
        key,
        marked.size(),
        list_of(marked, name_of_path));
  }
  if (!other_encoding.empty()) {
    warnings.push_back(fmt::format(
        "{}: {} files are not UTF-8 in so much of their beginning, and are trained on byte by byte "
        "(convert them, as in `iconv -f LATIN1 -t UTF-8`): {}",
        key,
        other_encoding.size(),
        list_of(other_encoding, [](const std::string& text) { return text; })));
  }
}

// A loss on text that was trained on says nothing about other text.
void exclude(TextFiles& list, const TextFiles& validation) {
  std::vector<std::filesystem::path> shared;
  const auto in_validation = [&](const TextFile& file) {
    const auto& files = validation.files;
    const auto found = std::lower_bound(
        files.begin(), files.end(), file, [](const TextFile& a, const TextFile& b) {
          return a.path < b.path;
        });
    if (found == files.end() || found->path != file.path) {
      return false;
    }
    if (found->origin == TextFile::Origin::named && file.origin == TextFile::Origin::named) {
      throw ConfigError("data.train and data.validation both name " + file.path.string() +
                        " (a loss on text that was trained on says nothing of other text); remove "
                        "it from one of them");
    }
    shared.push_back(file.path);
    return true;
  };
  std::erase_if(list.files, in_validation);
  if (!shared.empty()) {
    log_info("data.train: {} files are in data.validation too and are not trained on: {}",
             shared.size(),
             list_of(shared, name_of_path));
  }
}

// The same under another name.
void warn_of_copies(const TokenStream& train,
                    const TokenStream& validation,
                    std::vector<std::string>& warnings) {
  std::map<std::string_view, const Document*> trained_on;
  for (const Document& document : train.documents()) {
    trained_on.emplace(document.digest, &document);
  }
  std::vector<std::string> copies;
  std::uint64_t num_bytes = 0;
  std::uint64_t all_bytes = 0;
  for (const Document& document : validation.documents()) {
    all_bytes += document.num_bytes;
    if (const auto found = trained_on.find(document.digest); found != trained_on.end()) {
      num_bytes += document.num_bytes;
      copies.push_back(document.path.string() + " is " + found->second->path.string());
    }
  }
  if (!copies.empty()) {
    warnings.push_back(fmt::format(
        "data.validation: {:.1f} % of its bytes are trained on, as files of data.train have the "
        "same content, and the loss on them says nothing of other text: {}",
        100 * static_cast<double>(num_bytes) / static_cast<double>(all_bytes),
        list_of(copies, [](const std::string& text) { return text; })));
  }
}

TextFiles list_training_text(const DataConfig& config,
                             const std::vector<std::string>& default_roots,
                             const std::filesystem::path& run_dir) {
  if (!config.train.empty()) {
    return list_text_files("data.train", config.train, run_dir);
  }
  if (default_roots.empty()) {
    throw ConfigError(
        "data.train is not given (the default are memphis's own sources, which do not lie where "
        "this program was built); name files, directories or patterns, as in data.train=[a.txt]");
  }
  log_info("data.train is not given: memphis's own sources are trained on: {}",
           list_of(default_roots, [](const std::string& root) { return root; }));
  return list_text_files("the default of data.train", default_roots, run_dir);
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
                     const std::vector<std::string>& default_roots,
                     const std::filesystem::path& run_dir) {
  require(sequence_length >= 1, "a sequence has at least one token");
  require(config.held_out >= 0 && config.held_out < 1, "data.held_out is in [0, 1)");

  TextFiles train = list_training_text(config, default_roots, run_dir);
  Dataset dataset;
  if (config.validation.empty()) {
    dataset.train = std::make_shared<const TokenStream>(train.files);
    describe("data.train", train, *dataset.train, dataset.warnings);
    dataset.validation = dataset.train;
    const std::uint64_t total = dataset.train->num_tokens();
    const auto cut =
        static_cast<std::uint64_t>(std::floor(static_cast<double>(total) * (1 - config.held_out)));
    dataset.train_range = {.begin = 0, .end = cut};
    dataset.validation_range = {.begin = cut, .end = total};
    if (config.held_out > 0) {
      log_info(
          "data.validation is not given: the last {:.3g} % of data.train is held out, {} tokens",
          100 * config.held_out,
          total - cut);
    }
  } else {
    const TextFiles validation = list_text_files("data.validation", config.validation, run_dir);
    exclude(train, validation);
    dataset.train = std::make_shared<const TokenStream>(train.files);
    describe("data.train", train, *dataset.train, dataset.warnings);
    dataset.validation = std::make_shared<const TokenStream>(validation.files);
    describe("data.validation", validation, *dataset.validation, dataset.warnings);
    warn_of_copies(*dataset.train, *dataset.validation, dataset.warnings);
    dataset.train_range = {.begin = 0, .end = dataset.train->num_tokens()};
    dataset.validation_range = {.begin = 0, .end = dataset.validation->num_tokens()};
  }

  // What was passed over is the likeliest reason for too little.
  const auto loss = [](const TokenStream& stream) {
    const std::string text = loss_of(stream).text;
    return text.empty() ? "" : "; passed over were " + text;
  };
  require_tokens("the training part of data.train",
                 dataset.train_range.size(),
                 static_cast<std::uint64_t>(sequence_length) + 1,
                 "batch.sequence_length " + std::to_string(sequence_length) +
                     " and the token after it" + loss(*dataset.train),
                 "add text, or lower batch.sequence_length or data.held_out");
  if (!config.validation.empty() || config.held_out > 0) {
    require_tokens(config.validation.empty() ? "the held-out end of data.train" : "data.validation",
                   dataset.validation_range.size(),
                   2,
                   "one to read and one to predict" + loss(*dataset.validation),
                   "add text, or set data.held_out to 0 to train without validation");
  }
  return dataset;
}

}  // namespace memphis
