// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/dataset_preparation.h"

#include <chrono>
#include <utility>

#include "csrc/core/log.h"
#include "csrc/data/corpus.h"
#include "csrc/data/file_records.h"
#include "csrc/data/kept_tokenizer.h"
#include "csrc/data/megatron_stream.h"
#include "csrc/data/run_tokens.h"
#include "csrc/data/text_lists.h"
#include "csrc/data/token_file_stream.h"

namespace memphis {

struct DatasetPreparation::State {
  struct Work {
    std::string key;
    SortedFiles sorted;
  };
  std::vector<Work> parts;
  std::shared_ptr<const Tokenizer> tokenizer;
  TokenizeOptions options;
  std::filesystem::path run_dir;
  std::vector<Work> work;
  std::unique_ptr<TokenizeJob> job;

  std::filesystem::path prefix(const SortedFiles& sorted) const {
    return tokens_prefix(run_dir, sorted, *tokenizer, options);
  }
};

DatasetPreparation::DatasetPreparation(const DataConfig& config,
                                       const std::vector<std::string>& default_roots,
                                       const std::filesystem::path& run_dir)
    : state_(std::make_unique<State>()) {
  state_->tokenizer = open_tokenizer_of_run(config.tokenizer, config.tokenizer_pattern, run_dir);
  state_->options = tokenize_options(config);
  state_->run_dir = run_dir;
  TextLists lists = list_texts(config, default_roots, run_dir);
  for (auto* parts : {&lists.train, &lists.validation}) {
    for (const TextPart& part : *parts) {
      SortedFiles sorted = sort_files(part.list.files, config);
      require_tokenizer(part.key, sorted, state_->tokenizer.get());
      state_->parts.push_back({part.key, std::move(sorted)});
      if (!state_->parts.back().sorted.documents.empty()) {
        state_->work.push_back(state_->parts.back());
      }
    }
  }
}

DatasetPreparation::~DatasetPreparation() = default;

std::vector<IdScan::Column> DatasetPreparation::unread_ids(std::int64_t vocab_size) const {
  const FileRecords records(records_of_run(state_->run_dir));
  std::vector<IdScan::Column> unread;
  const auto add = [&](const IdColumn& ids, std::int64_t own_vocab_size = 0) {
    if (!records.find(ids.file, scan_name(ids))) {
      unread.push_back(IdScan::describe(ids));
      unread.back().own_vocab_size = own_vocab_size;
    }
  };
  for (const auto& [key, sorted] : state_->parts) {
    if (!sorted.documents.empty()) {
      add(megatron_ids(state_->prefix(sorted).string() + ".idx"), state_->tokenizer->vocab_size());
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

bool DatasetPreparation::discard_damaged() {
  State& state = *state_;
  FileRecords records(records_of_run(state.run_dir));
  for (const State::Work& part : state.parts) {
    if (!part.sorted.documents.empty() &&
        discard_if_damaged(part.key, state.prefix(part.sorted), *state.tokenizer, records)) {
      state.work.push_back(part);
    }
  }
  records.save();
  return !state.work.empty();
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
