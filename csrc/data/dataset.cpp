// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/log.h"
#include "csrc/data/corpus.h"
#include "csrc/data/digest.h"
#include "csrc/data/file_records.h"
#include "csrc/data/joined_stream.h"
#include "csrc/data/kept_tokenizer.h"
#include "csrc/data/megatron_stream.h"
#include "csrc/data/name_list.h"
#include "csrc/data/run_tokens.h"
#include "csrc/data/text_findings.h"
#include "csrc/data/text_lists.h"
#include "csrc/data/text_stream.h"
#include "csrc/data/token_file_stream.h"

namespace memphis {
namespace {

struct Opened {
  std::shared_ptr<const TokenStream> stream;
  std::shared_ptr<const TextStream> text;  // the part of it that is text
  std::string loss;                        // what was passed over
  bool has_lines = false;
};

Opened open_part(const TextPart& part,
                 const DataConfig& config,
                 const std::shared_ptr<const Tokenizer>& tokenizer,
                 const std::filesystem::path& run_dir,
                 const DatasetOptions& options,
                 FileRecords& records,
                 std::vector<std::string>& warnings) {
  const SortedFiles sorted = sort_files(part.list.files, config);
  require_tokenizer(part.key, sorted, tokenizer.get());
  Opened opened;
  opened.text = std::make_shared<const TextStream>(
      sorted.text, TextStream::default_max_held_files(), &records);
  opened.loss = loss_of(*opened.text).text;
  opened.has_lines = has_lines(sorted);
  std::vector<std::shared_ptr<const TokenStream>> streams;
  if (opened.text->num_documents() > 0) {
    streams.push_back(opened.text);
  }
  if (!sorted.documents.empty()) {
    require(!run_dir.empty(), "tokens are kept in a run's directory");
    const TokenizeOptions tokenize = tokenize_options(config);
    const auto prefix = tokens_prefix(run_dir, sorted, *tokenizer, tokenize);
    const auto make_missing = [&] {
      if (const auto job = start_tokenizing(part.key, run_dir, sorted, tokenizer, tokenize)) {
        while (job->step()) {
        }
        say_tokenized(part.key, job->counts(), warnings);
      }
    };
    make_missing();
    if (discard_if_damaged(part.key, prefix, *tokenizer, records)) {
      make_missing();
    }
    streams.push_back(open_megatron(prefix.string() + ".idx", options.vocab_size, records));
    note_tokens(prefix, streams.back()->fingerprint());
  }
  const SpecialTokens special = tokenizer ? tokenizer->special() : SpecialTokens{};
  for (const std::filesystem::path& path : sorted.megatron) {
    require_same_tokenizer(path, tokenizer.get());
    streams.push_back(open_megatron(path, options.vocab_size, records));
  }
  for (const std::filesystem::path& path : sorted.token_files) {
    const bool is_bytes = config.tokenizer == ByteTokenizer::kName;
    const Separator separator =
        is_bytes ? Separator{}
                 : Separator{.first = special.bos, .last = special.bos < 0 ? special.eos : -1};
    streams.push_back(open_token_file(path, separator, options.vocab_size, records));
  }
  const std::size_t num_tokenized = sorted.megatron.size() + sorted.token_files.size();
  if (num_tokenized > 0 && config.tokenizer == ByteTokenizer::kName) {
    warnings.push_back(fmt::format(
        "{}: {} is of tokens, and data.tokenizer is byte, whose ids theirs need not be (samples of "
        "text would be none); set data.tokenizer to the one that made it, or to none",
        part.key,
        (sorted.megatron.empty() ? sorted.token_files : sorted.megatron).front().string()));
  }
  if (streams.empty()) {
    streams.push_back(opened.text);
  }
  opened.stream = join(std::move(streams));
  std::string what = fmt::format("{} documents", opened.text->num_documents());
  if (!sorted.documents.empty() || num_tokenized > 0) {
    what += fmt::format(" of plain text, {} files of text that is tokenized, {} of tokens",
                        sorted.documents.size(),
                        num_tokenized);
  }
  log_info("{}{}: {}, {} tokens, fingerprint {}",
           part.key,
           part.name.empty() ? "" : " (" + part.name + ")",
           what,
           opened.stream->num_tokens(),
           opened.stream->fingerprint());
  describe(part.key, part.list, *opened.text, warnings);
  return opened;
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

void require_fitting(const Tokenizer* tokenizer,
                     const DataConfig& config,
                     const DatasetOptions& options) {
  if (tokenizer == nullptr || config.tokenizer == ByteTokenizer::kName) {
    return;
  }
  if (tokenizer->vocab_size() > options.vocab_size) {
    throw ConfigError(fmt::format(
        "model.vocab_size {} is smaller than the vocabulary of {}, {} (each of its ids has a row); "
        "use at least {}",
        options.vocab_size,
        config.tokenizer,
        tokenizer->vocab_size(),
        tokenizer->vocab_size()));
  }
  const std::int32_t pad = tokenizer->special().pad;
  if (options.pad_id >= 0 && options.pad_id != pad && options.pad_id < tokenizer->vocab_size()) {
    throw ConfigError(fmt::format(
        "model.pad_id {} is an id of text in {} (it is masked wherever it stands, and the "
        "tokenizer {}); set model.pad_id to {}",
        options.pad_id,
        config.tokenizer,
        pad < 0 ? std::string("has none for padding") : fmt::format("pads with {}", pad),
        pad));
  }
}

void require_fields_used(const DataConfig& config, bool has_lines) {
  const bool has_prompt = !config.prompt_field.empty();
  if (has_lines || (!has_prompt && config.field == DataConfig().field)) {
    return;
  }
  throw ConfigError(
      fmt::format("data.{} is {} and has nothing to be of (no file of data.train or "
                  "data.validation is lines of "
                  "JSON); leave it out, or name files of which each line is an object",
                  has_prompt ? "prompt_field" : "field",
                  has_prompt ? config.prompt_field : config.field));
}

Dataset open_dataset(const DataConfig& config,
                     std::int64_t sequence_length,
                     const std::vector<std::string>& default_roots,
                     const std::filesystem::path& run_dir,
                     const DatasetOptions& options) {
  require(sequence_length >= 1, "a sequence has at least one token");
  require(config.held_out >= 0 && config.held_out < 1, "data.held_out is in [0, 1)");
  Dataset dataset;
  dataset.tokenizer = open_tokenizer_of_run(config.tokenizer, config.tokenizer_pattern, run_dir);
  if (reads_kept_tokenizer(config.tokenizer, run_dir)) {
    log_info("data.tokenizer {} is not there: what the run kept of it is read, {}",
             config.tokenizer,
             kept_tokenizer(run_dir).string());
  }
  require_fitting(dataset.tokenizer.get(), config, options);
  if (config.train.empty() && !default_roots.empty()) {
    log_info("data.train is not given: memphis's own sources are trained on: {}",
             list_of(default_roots));
  }
  FileRecords records(records_of_run(run_dir));
  const auto open = [&](const TextPart& part) {
    Opened opened =
        open_part(part, config, dataset.tokenizer, run_dir, options, records, dataset.warnings);
    dataset.has_lines = dataset.has_lines || opened.has_lines;
    return opened;
  };
  const TextLists lists = list_texts(config, default_roots, run_dir);
  for (const std::string& line : lists.said) {
    log_info("{}", line);
  }
  const auto needed = static_cast<std::uint64_t>(sequence_length) + 1;
  const auto lost = [](const Opened& opened) {
    return opened.loss.empty() ? "" : "; passed over were " + opened.loss;
  };
  // What was passed over is the likeliest reason for too little.
  const auto require_predictable =
      [&](const std::string& what, const TokenRange& range, const Opened& opened) {
        require_tokens(what,
                       range.size(),
                       2,
                       "one to read and one to predict" + lost(opened),
                       "add text, or set data.held_out to 0 to train without validation");
      };
  const bool holds_out = config.validation.empty() && config.held_out > 0;
  std::vector<Opened> trained_on;
  for (const TextPart& part : lists.train) {
    const Opened opened = open(part);
    const std::uint64_t total = opened.stream->num_tokens();
    const auto cut = holds_out ? static_cast<std::uint64_t>(
                                     std::floor(static_cast<double>(total) * (1 - config.held_out)))
                               : total;
    require_tokens("the training part of " + part.key,
                   cut,
                   needed,
                   "batch.sequence_length " + std::to_string(sequence_length) +
                       " and the token after it" + lost(opened),
                   "add text, or lower batch.sequence_length or data.held_out");
    dataset.sources.push_back({.name = part.name,
                               .weight = part.weight,
                               .stream = opened.stream,
                               .range = {.begin = 0, .end = cut}});
    if (holds_out) {
      const TokenRange held{.begin = cut, .end = total};
      require_predictable("the held-out end of " + part.key, held, opened);
      dataset.validation.push_back({.name = part.name, .stream = opened.stream, .range = held});
      log_info("data.validation is not given: the last {:.3g} % of {} is held out, {} tokens",
               100 * config.held_out,
               part.key,
               total - cut);
    }
    trained_on.push_back(opened);
  }
  for (const TextPart& part : lists.validation) {
    const Opened opened = open(part);
    for (const Opened& train : trained_on) {
      warn_of_copies(*train.text, *opened.text, dataset.warnings);
    }
    const TokenRange range{.begin = 0, .end = opened.stream->num_tokens()};
    require_predictable(part.key, range, opened);
    dataset.validation.push_back({.name = part.name, .stream = opened.stream, .range = range});
  }
  records.save();

  const std::string of_tokenizer =
      dataset.tokenizer ? dataset.tokenizer->fingerprint() : std::string("none");
  const auto fingerprint_of = [&](const auto& texts) {
    if (texts.empty()) {
      return std::string();
    }
    if (texts.size() == 1 && config.tokenizer == ByteTokenizer::kName) {
      return texts.front().stream->fingerprint();  // which names the tokenizer
    }
    Digest digest;
    digest.update("tokenizer " + of_tokenizer + "\n");
    for (const auto& text : texts) {
      digest.update(text.stream->fingerprint() + "\n");
    }
    return digest.hex();
  };
  for (std::size_t i = 0; i < dataset.sources.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (dataset.sources[i].stream->fingerprint() == dataset.sources[j].stream->fingerprint()) {
        dataset.warnings.push_back(
            fmt::format("data.train: {} holds what {} does, which the mixture has twice",
                        dataset.sources[i].name,
                        dataset.sources[j].name));
      }
    }
  }
  dataset.fingerprint = fingerprint_of(dataset.sources);
  dataset.validation_fingerprint =
      config.validation.empty() ? std::string() : fingerprint_of(dataset.validation);
  if (dataset.sources.size() > 1) {
    Digest digest;
    digest.update(dataset.fingerprint);
    for (const TrainingSource& source : dataset.sources) {
      digest.update(fmt::format(" {}", source.weight));
    }
    dataset.fingerprint = digest.hex();
  }
  return dataset;
}

}  // namespace memphis
