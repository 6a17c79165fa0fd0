// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/dataset.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <optional>
#include <string_view>
#include <system_error>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/data/corpus.h"
#include "csrc/data/digest.h"
#include "csrc/data/document_reader.h"
#include "csrc/data/file_records.h"
#include "csrc/data/joined_stream.h"
#include "csrc/data/kept_tokenizer.h"
#include "csrc/data/megatron_stream.h"
#include "csrc/data/text_format.h"
#include "csrc/data/text_stream.h"
#include "csrc/data/token_file_stream.h"
#include "csrc/data/tokenize.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

// How many of a list a line names; the rest are counted.
constexpr std::size_t kMaxNamed = 8;
// Of the bytes of a corpus, from which on it is worth a warning that they are not trained on, and
// of those of a file, that they are not UTF-8.
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

Loss loss_of(const TextStream& stream) {
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
              const TextStream& stream,
              std::vector<std::string>& warnings) {
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
void warn_of_copies(const TextStream& train,
                    const TextStream& validation,
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

// Beside a dataset of `memphis tokenize` lies what it was made with.
void require_same_tokenizer(std::filesystem::path path, const Tokenizer* tokenizer) {
  path.replace_extension();
  path += kTokensMetaSuffix;
  std::error_code ignored;
  if (tokenizer == nullptr || !std::filesystem::exists(path, ignored)) {
    return;
  }
  const auto meta = parse_json(read_text(path)).value_or(nlohmann::json());
  const std::string made_with =
      meta.is_object() ? meta.value("tokenizer", std::string()) : std::string();
  if (!made_with.empty() && made_with != tokenizer->fingerprint()) {
    throw DataError(fmt::format(
        "{} says that its tokens are of another tokenizer, {} {}, than data.tokenizer, {} {} (ids "
        "would stand for other text); set data.tokenizer to the one that made it, or to none",
        path.string(),
        meta.value("tokenizer_kind", std::string("of unknown kind")),
        made_with,
        tokenizer->kind(),
        tokenizer->fingerprint()));
  }
}

std::filesystem::path records_of_run(const std::filesystem::path& run_dir) {
  return run_dir.empty() ? run_dir : run_dir / "tokens" / "files.json";
}

// A key's entries: its one text, or one of its named ones.
struct Part {
  std::string key;   // "data.train", or "data.train[1]"
  std::string name;  // empty for the one text
  double weight = 1;
  TextFiles list;
};

std::vector<Part> parts_of(std::string_view key,
                           const std::vector<std::string>& paths,
                           const std::vector<DataEntry>& entries,
                           const std::filesystem::path& run_dir) {
  if (entries.empty()) {
    return {{.key = std::string(key), .name = {}, .list = list_text_files(key, paths, run_dir)}};
  }
  std::vector<Part> parts;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::string own = fmt::format("{}[{}]", key, i);
    parts.push_back({.key = own,
                     .name = name_of_entry(paths[i], entries[i]),
                     .weight = entries[i].weight,
                     .list = list_text_files(own, {paths[i]}, run_dir)});
  }
  return parts;
}

std::vector<Part> training_parts(const DataConfig& config,
                                 const std::vector<std::string>& default_roots,
                                 const std::filesystem::path& run_dir) {
  if (!config.train.empty()) {
    return parts_of("data.train", config.train, config.mixture, run_dir);
  }
  if (default_roots.empty()) {
    throw ConfigError(
        "data.train is not given (the default are memphis's own sources, which do not lie where "
        "this program was built); name files, directories or patterns, as in data.train=[a.txt]");
  }
  return {{.key = "data.train",
           .name = {},
           .list = list_text_files("the default of data.train", default_roots, run_dir)}};
}

TokenizeOptions tokenize_options(const DataConfig& config) {
  TokenizeOptions options;
  options.field = config.field;
  options.prompt_field = config.prompt_field;
  options.response_field = config.response_field;
  return options;
}

std::shared_ptr<const Tokenizer> tokenizer_for_text(const std::string& key,
                                                    const SortedFiles& sorted,
                                                    std::shared_ptr<const Tokenizer> tokenizer) {
  if (tokenizer == nullptr && !sorted.documents.empty()) {
    throw ConfigError(fmt::format(
        "data.tokenizer is none and {} has text, {} (ids stand for no text without a tokenizer); "
        "set data.tokenizer to byte or to a path, or give tokens",
        key,
        sorted.documents.front().path.string()));
  }
  return tokenizer;
}

// Where the documents of a part lie once they are tokenized.
std::filesystem::path tokens_prefix(const std::filesystem::path& run_dir,
                                    const SortedFiles& sorted,
                                    const Tokenizer& tokenizer,
                                    const TokenizeOptions& options) {
  constexpr std::size_t kDigits = 16;  // of the fingerprint: of one run's texts
  return run_dir / "tokens" /
         TokenizeJob::fingerprint(sorted.documents, tokenizer, options).substr(0, kDigits);
}

std::unique_ptr<TokenizeJob> start_tokenizing(const std::string& key,
                                              const std::filesystem::path& run_dir,
                                              const SortedFiles& sorted,
                                              const std::shared_ptr<const Tokenizer>& tokenizer,
                                              const TokenizeOptions& options) {
  const std::filesystem::path prefix = tokens_prefix(run_dir, sorted, *tokenizer, options);
  if (TokenizeJob::is_done(prefix,
                           TokenizeJob::fingerprint(sorted.documents, *tokenizer, options))) {
    return nullptr;
  }
  auto job = std::make_unique<TokenizeJob>(sorted.documents, tokenizer, options, prefix);
  log_info("{}: tokenizing {} files, {} bytes, once into {}.bin{}",
           key,
           sorted.documents.size(),
           job->bytes_total(),
           prefix.string(),
           job->resumed_at() == 0
               ? std::string()
               : fmt::format(", from byte {} on, where it was left", job->resumed_at()));
  return job;
}

void say_tokenized(const std::string& key,
                   const TokenizeJob::Counts& counts,
                   std::vector<std::string>& warnings) {
  log_info("{}: tokenized {} documents, {} bytes, to {} tokens",
           key,
           counts.documents,
           counts.text_bytes,
           counts.tokens);
  if (counts.empty_documents + counts.blank_lines > 0) {
    log_info("{}: left out {} empty documents and {} blank lines",
             key,
             counts.empty_documents,
             counts.blank_lines);
  }
  if (counts.replaced > 0) {
    warnings.push_back(key + ": " + describe_replaced(counts.replaced));
  }
}

struct Opened {
  std::shared_ptr<const TokenStream> stream;
  std::shared_ptr<const TextStream> text;  // the part of it that is text
  std::string loss;                        // what was passed over
};

Opened open_part(const Part& part,
                 const DataConfig& config,
                 const std::shared_ptr<const Tokenizer>& tokenizer,
                 const std::filesystem::path& run_dir,
                 const DatasetOptions& options,
                 FileRecords& records,
                 std::vector<std::string>& warnings) {
  const SortedFiles sorted = sort_files(part.list.files, config);
  (void)tokenizer_for_text(part.key, sorted, tokenizer);
  Opened opened;
  opened.text = std::make_shared<const TextStream>(
      sorted.text, TextStream::default_max_held_files(), &records);
  opened.loss = loss_of(*opened.text).text;
  std::vector<std::shared_ptr<const TokenStream>> streams;
  if (opened.text->num_documents() > 0) {
    streams.push_back(opened.text);
  }
  if (!sorted.documents.empty()) {
    require(!run_dir.empty(), "tokens are kept in a run's directory");
    const TokenizeOptions tokenize = tokenize_options(config);
    if (const auto job = start_tokenizing(part.key, run_dir, sorted, tokenizer, tokenize)) {
      while (job->step()) {
      }
      say_tokenized(part.key, job->counts(), warnings);
    }
    const auto index = tokens_prefix(run_dir, sorted, *tokenizer, tokenize).string() + ".idx";
    streams.push_back(open_megatron(index, options.vocab_size, records));
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

void require_fitting(const Tokenizer* tokenizer,
                     const DataConfig& config,
                     const DatasetOptions& options) {
  if (tokenizer == nullptr) {
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

// The lists of a config: what is trained on, and what is held out of it.
struct Lists {
  std::vector<Part> train;
  std::vector<Part> validation;
};

Lists lists_of(const DataConfig& config,
               const std::vector<std::string>& default_roots,
               const std::filesystem::path& run_dir) {
  Lists lists{.train = training_parts(config, default_roots, run_dir), .validation = {}};
  if (!config.validation.empty()) {
    lists.validation =
        parts_of("data.validation", config.validation, config.validation_sets, run_dir);
    for (Part& part : lists.train) {
      for (const Part& held : lists.validation) {
        exclude(part.list, held.list);
      }
    }
  }
  return lists;
}

}  // namespace

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
  if (config.tokenizer != ByteTokenizer::kName) {
    require_fitting(dataset.tokenizer.get(), config, options);
  }
  if (config.train.empty() && !default_roots.empty()) {
    log_info("data.train is not given: memphis's own sources are trained on: {}",
             list_of(default_roots, [](const std::string& root) { return root; }));
  }
  FileRecords records(records_of_run(run_dir));
  const auto open = [&](const Part& part) {
    return open_part(part, config, dataset.tokenizer, run_dir, options, records, dataset.warnings);
  };
  const Lists lists = lists_of(config, default_roots, run_dir);
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
  for (const Part& part : lists.train) {
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
  for (const Part& part : lists.validation) {
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

struct DatasetPreparation::State {
  struct Work {
    std::string key;
    SortedFiles sorted;
  };
  std::vector<SortedFiles> parts;
  std::shared_ptr<const Tokenizer> tokenizer;
  TokenizeOptions options;
  std::filesystem::path run_dir;
  std::vector<Work> work;
  std::unique_ptr<TokenizeJob> job;
};

DatasetPreparation::DatasetPreparation(const DataConfig& config,
                                       const std::vector<std::string>& default_roots,
                                       const std::filesystem::path& run_dir)
    : state_(std::make_unique<State>()) {
  state_->tokenizer = open_tokenizer_of_run(config.tokenizer, config.tokenizer_pattern, run_dir);
  state_->options = tokenize_options(config);
  state_->run_dir = run_dir;
  Lists lists = lists_of(config, default_roots, run_dir);
  for (auto* parts : {&lists.train, &lists.validation}) {
    for (const Part& part : *parts) {
      SortedFiles sorted = sort_files(part.list.files, config);
      (void)tokenizer_for_text(part.key, sorted, state_->tokenizer);
      state_->parts.push_back(sorted);
      if (!sorted.documents.empty()) {
        state_->work.push_back({part.key, std::move(sorted)});
      }
    }
  }
}

DatasetPreparation::~DatasetPreparation() = default;

std::vector<IdScan::Column> DatasetPreparation::unread_ids(std::int64_t vocab_size) const {
  const FileRecords records(records_of_run(state_->run_dir));
  std::vector<IdScan::Column> unread;
  const auto add = [&](const IdColumn& ids) {
    if (!records.find(ids.file, scan_name(ids))) {
      unread.push_back(IdScan::describe(ids));
    }
  };
  for (const SortedFiles& sorted : state_->parts) {
    if (!sorted.documents.empty()) {
      add(megatron_ids(
          tokens_prefix(state_->run_dir, sorted, *state_->tokenizer, state_->options).string() +
          ".idx"));
    }
    for (const std::filesystem::path& path : sorted.megatron) {
      require_same_tokenizer(path, state_->tokenizer.get());
      add(megatron_ids(path));
    }
    for (const std::filesystem::path& path : sorted.token_files) {
      add(token_file_ids(path, vocab_size));
    }
  }
  return unread;
}

void DatasetPreparation::keep(const IdScan& scan, const std::string& results) const {
  FileRecords records(records_of_run(state_->run_dir));
  scan.keep(results, records);
  records.save();
}

bool DatasetPreparation::advance(double seconds) {
  const auto begin = std::chrono::steady_clock::now();
  State& state = *state_;
  while (!state.work.empty()) {
    const State::Work& work = state.work.front();
    if (!state.job) {
      state.job =
          start_tokenizing(work.key, state.run_dir, work.sorted, state.tokenizer, state.options);
    }
    while (state.job && state.job->step()) {
      if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() >=
          seconds) {
        log_info("{}: tokenized {} of {} bytes",
                 work.key,
                 state.job->bytes_done(),
                 state.job->bytes_total());
        return true;
      }
    }
    if (state.job) {
      std::vector<std::string> warnings;
      say_tokenized(work.key, state.job->counts(), warnings);
      for (const std::string& warning : warnings) {
        log_warning("{}", warning);
      }
    }
    state.job.reset();
    state.work.erase(state.work.begin());
  }
  return false;
}

}  // namespace memphis
