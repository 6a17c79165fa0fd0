// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/tokenize.h"

#include <algorithm>
#include <optional>
#include <system_error>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/core/parallel.h"
#include "csrc/core/progress.h"
#include "csrc/data/append_file.h"
#include "csrc/data/digest.h"
#include "csrc/data/document_encoder.h"
#include "csrc/data/megatron_index.h"
#include "csrc/data/megatron_stream.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// Of both the journal and the meta file, and of what ids depend on beside their fingerprints.
constexpr int kVersion = 1;

fs::path with(const fs::path& prefix, std::string_view suffix) {
  return prefix.string() + std::string(suffix);
}

}  // namespace

struct TokenizeJob::State {
  std::vector<CorpusFile> files;
  std::shared_ptr<const Tokenizer> tokenizer;
  TokenizeOptions options;
  std::optional<DocumentEncoder> encoder;
  fs::path prefix;
  std::string fingerprint;
  bool wide = false;  // ids have 32 bits, else 16

  std::optional<AppendFile> tokens;
  std::optional<AppendFile> lengths;
  std::optional<AppendFile> mask;

  std::optional<DocumentReader> reader;
  std::size_t file = 0;
  Counts counts;
  std::uint64_t done_bytes = 0;  // of the files before this one
  std::uint64_t total_bytes = 0;
  std::uint64_t resumed = 0;
  std::uint64_t taken = 0;  // bytes of text that this process has read
  std::uint64_t noted = 0;  // of them when the journal was written
  bool finished = false;
  std::optional<Progress> progress;

  // Of the bytes of files as they are packed.
  void show_progress() {
    constexpr unsigned kKib = 10;
    if (!progress) {
      progress.emplace("tokenize",
                       static_cast<std::int64_t>(total_bytes >> kKib),
                       "KiB",
                       static_cast<std::int64_t>(resumed >> kKib));
    }
    const std::uint64_t done = done_bytes + (reader ? reader->bytes_read() : 0);
    progress->update(static_cast<std::int64_t>(done >> kKib),
                     fmt::format("{} tokens", counts.tokens));
  }

  fs::path partial(std::string_view suffix) const {
    return with(prefix, std::string(suffix) + ".partial");
  }

  std::uint64_t id_bytes() const { return wide ? 4 : 2; }

  // The journal.
  void note() {
    if (taken - noted < options.noted_bytes) {
      return;
    }
    noted = taken;
    for (const auto* part : {&tokens, &lengths, &mask}) {
      if (*part) {
        (*part)->sync();
      }
    }
    const Json journal = {{"version", kVersion},
                          {"fingerprint", fingerprint},
                          {"file", file},
                          {"offset", reader ? reader->offset() : 0},
                          {"line", reader ? reader->line() : 0},
                          {"documents", counts.documents},
                          {"tokens", counts.tokens},
                          {"text_bytes", counts.text_bytes},
                          {"empty_documents", counts.empty_documents},
                          {"blank_lines", counts.blank_lines},
                          {"replaced", counts.replaced}};
    write_text_atomically(partial(".journal"), journal.dump());
  }

  // Takes up what an earlier process has noted, or nothing of it.
  void take_up() {
    std::uint64_t offset = 0;
    std::uint64_t line = 0;
    std::error_code ignored;
    if (fs::exists(partial(".journal"), ignored)) {
      const Json journal = parse_json(read_text(partial(".journal"))).value_or(Json());
      try {
        const std::uint64_t num_tokens = journal.at("tokens").get<std::uint64_t>();
        const std::uint64_t num_documents = journal.at("documents").get<std::uint64_t>();
        const auto at = journal.at("file").get<std::size_t>();
        if (journal.at("version") == kVersion && journal.at("fingerprint") == fingerprint &&
            at <= files.size() && tokens->size() >= num_tokens * id_bytes() &&
            lengths->size() >= 4 * num_documents &&
            (!mask || mask->size() >= kMaskMagic.size() + num_tokens)) {
          file = at;
          offset = journal.at("offset").get<std::uint64_t>();
          line = journal.at("line").get<std::uint64_t>();
          counts = {.documents = num_documents,
                    .tokens = num_tokens,
                    .text_bytes = journal.at("text_bytes").get<std::uint64_t>(),
                    .empty_documents = journal.at("empty_documents").get<std::uint64_t>(),
                    .blank_lines = journal.at("blank_lines").get<std::uint64_t>(),
                    .replaced = journal.at("replaced").get<std::uint64_t>()};
        } else {
          log_info(
              "{} is of other text, another tokenizer or other options, or cut short, and is begun "
              "anew",
              partial(".bin").string());
        }
      } catch (const Json::exception&) {
        log_info("{} is damaged: all is tokenized anew", partial(".journal").string());
      }
    }
    tokens->cut(counts.tokens * id_bytes());
    lengths->cut(4 * counts.documents);
    if (mask) {
      mask->cut(counts.tokens == 0 ? 0 : kMaskMagic.size() + counts.tokens);
      if (counts.tokens == 0) {
        mask->write(std::as_bytes(std::span(kMaskMagic)));
      }
    }
    for (std::size_t i = 0; i < file; ++i) {
      done_bytes += InputFile(files[i].path).size();
    }
    if (file < files.size() && (offset > 0 || line > 0)) {
      reader.emplace(files[file], options.max_document_bytes, offset, line);
    }
    resumed = done_bytes + (reader ? reader->bytes_read() : 0);
  }

  // A batch.
  std::vector<RawDocument> read_batch() {
    std::vector<RawDocument> batch;
    std::uint64_t bytes = 0;
    while (bytes < options.batch_bytes && file < files.size()) {
      if (!reader) {
        reader.emplace(files[file], options.max_document_bytes);
      }
      RawDocument raw{.bytes = {}, .file = file, .line = 0, .offset = reader->offset()};
      if (!reader->next(raw.bytes)) {
        done_bytes += reader->num_bytes();
        reader.reset();
        ++file;
        continue;
      }
      raw.line = files[file].framing == Framing::lines ? reader->line() : 0;
      bytes += raw.bytes.size() + 1;
      batch.push_back(std::move(raw));
    }
    taken += bytes;
    return batch;
  }

  std::vector<EncodedDocuments> encode_batch(const std::vector<RawDocument>& batch) const {
    // Pieces of about as many bytes, cut by the text alone.
    constexpr std::uint64_t kPieceBytes = std::uint64_t{128} << 10U;
    std::vector<std::size_t> ends;
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      bytes += batch[i].bytes.size() + 1;
      if (bytes >= kPieceBytes || i + 1 == batch.size()) {
        ends.push_back(i + 1);
        bytes = 0;
      }
    }
    std::vector<EncodedDocuments> pieces(ends.size());
    parallel_chunks(static_cast<std::int64_t>(ends.size()), [&](std::int64_t chunk) {
      const auto index = static_cast<std::size_t>(chunk);
      EncodedDocuments& piece = pieces[index];
      for (std::size_t i = index == 0 ? 0 : ends[index - 1]; i < ends[index]; ++i) {
        encoder->append(batch[i], piece);
        if (!piece.problem.empty()) {
          return;
        }
      }
    });
    return pieces;
  }

  void write_piece(const EncodedDocuments& piece) {
    if (wide) {
      tokens->write_values(piece.ids);
    } else {
      tokens->write_values(std::vector<std::uint16_t>(piece.ids.begin(), piece.ids.end()));
    }
    lengths->write_values(piece.lengths);
    if (mask) {
      mask->write_values(piece.learnt);
    }
    counts.documents += piece.counts.documents;
    counts.tokens += piece.ids.size();
    counts.text_bytes += piece.counts.text_bytes;
    counts.empty_documents += piece.counts.empty_documents;
    counts.blank_lines += piece.counts.blank_lines;
    counts.replaced += piece.counts.replaced;
  }

  // The end.
  void finish() {
    for (auto* part : {&tokens, &lengths, &mask}) {
      if (*part) {
        (*part)->sync();
      }
    }
    const fs::path index_path = partial(".idx");
    write_megatron_index(index_path, lengths->path(), counts.documents, wide);
    // The index last: without it there is no dataset. What the files are of stands first, so that those of
    // a process that is killed in between are known for this job's.
    remove_file(with(prefix, ".idx"));
    const SpecialTokens special = tokenizer->special();
    const Json meta = {{"version", kVersion},
                       {"fingerprint", fingerprint},
                       {"tokenizer", tokenizer->fingerprint()},
                       {"tokenizer_kind", tokenizer->kind()},
                       {"vocab_size", tokenizer->vocab_size()},
                       {"bos", options.bos ? special.bos : -1},
                       {"eos", options.eos ? special.eos : -1},
                       {"documents", counts.documents},
                       {"tokens", counts.tokens},
                       {"text_bytes", counts.text_bytes},
                       {"empty_documents", counts.empty_documents},
                       {"blank_lines", counts.blank_lines},
                       {"replaced", counts.replaced}};
    write_text_atomically(with(prefix, kTokensMetaSuffix), meta.dump(1) + "\n");
    rename_or_fail(tokens->path(), with(prefix, ".bin"));
    if (mask) {
      rename_or_fail(mask->path(), with(prefix, ".mask"));
    }
    flush_names(directory_of(prefix));
    rename_or_fail(index_path, with(prefix, ".idx"));
    // The notes are what a loss of power would need to go on, until the index has its name for good.
    flush_names(directory_of(prefix));
    remove_notes();
    finished = true;
  }

  void remove_notes() const {
    remove_file(partial(".lengths"));
    remove_file(partial(".journal"));
  }
};

TokenizeJob::TokenizeJob(std::vector<CorpusFile> files,
                         std::shared_ptr<const Tokenizer> tokenizer,
                         TokenizeOptions options,
                         fs::path prefix)
    : state_(std::make_unique<State>()) {
  State& state = *state_;
  require(tokenizer != nullptr, "text is tokenized by a tokenizer");
  state.fingerprint = fingerprint(files, *tokenizer, options);
  state.files = std::move(files);
  state.tokenizer = std::move(tokenizer);
  state.options = std::move(options);
  state.encoder.emplace(state.files, state.tokenizer, state.options);
  state.prefix = std::move(prefix);
  // As Megatron chooses: 16 bits below 65500.
  state.wide = state.tokenizer->vocab_size() >= 65500;
  if (is_done(state.prefix, state.fingerprint)) {
    state.finished = true;
    const Json meta = parse_json(read_text(with(state.prefix, kTokensMetaSuffix))).value_or(Json());
    state.counts = {.documents = member_or(meta, "documents", std::uint64_t{0}),
                    .tokens = member_or(meta, "tokens", std::uint64_t{0}),
                    .text_bytes = member_or(meta, "text_bytes", std::uint64_t{0}),
                    .empty_documents = member_or(meta, "empty_documents", std::uint64_t{0}),
                    .blank_lines = member_or(meta, "blank_lines", std::uint64_t{0}),
                    .replaced = member_or(meta, "replaced", std::uint64_t{0})};
  }
  for (const CorpusFile& file : state.files) {
    state.total_bytes += InputFile(file.path).size();
  }
  if (state.finished) {
    state.done_bytes = state.total_bytes;
    state.resumed = state.total_bytes;
    state.remove_notes();
    return;
  }
  const fs::path folder = state.prefix.parent_path();
  make_directories_or_fail(folder);
  state.tokens.emplace(state.partial(".bin"));
  if (!state.tokens->lock()) {
    throw PreflightError(fmt::format(
        "{} is being written by another process (it holds a lock on it); let it end, or choose "
        "another output",
        state.tokens->path().string()));
  }
  // With the lock nobody else is at it.
  remove_left_siblings(state.partial(".journal"));
  remove_left_siblings(with(state.prefix, kTokensMetaSuffix));
  state.lengths.emplace(state.partial(".lengths"));
  if (state.encoder->is_masked()) {
    state.mask.emplace(state.partial(".mask"));
  }
  state.take_up();
}

TokenizeJob::~TokenizeJob() = default;

std::string TokenizeJob::fingerprint(const std::vector<CorpusFile>& files,
                                     const Tokenizer& tokenizer,
                                     const TokenizeOptions& options) {
  Digest digest;
  digest.update(fmt::format("{} {} {} {}\n{}\n{}\n{}\n",
                            kVersion,
                            tokenizer.fingerprint(),
                            options.bos,
                            options.eos,
                            options.field,
                            options.prompt_field,
                            options.response_field));
  for (const CorpusFile& file : files) {
    const InputFile now(file.path);
    digest.update(fmt::format("{} {} {} {} {}\n",
                              static_cast<int>(file.packing),
                              static_cast<int>(file.framing),
                              now.size(),
                              now.modified_ns(),
                              file.path.string()));
  }
  return digest.hex();
}

bool TokenizeJob::is_done(const fs::path& prefix, const std::string& fingerprint) {
  std::error_code ignored;
  return fs::exists(with(prefix, ".bin"), ignored) && fs::exists(with(prefix, ".idx"), ignored) &&
         is_begun(prefix, fingerprint);
}

bool TokenizeJob::is_begun(const fs::path& prefix, const std::string& fingerprint) {
  std::error_code ignored;
  const fs::path meta = with(prefix, kTokensMetaSuffix);
  if (!fs::exists(meta, ignored)) {
    return false;
  }
  const Json root = parse_json(read_text(meta)).value_or(Json());
  return member_or(root, "fingerprint", std::string()) == fingerprint;
}

bool TokenizeJob::step() {
  State& state = *state_;
  if (state.finished) {
    return false;
  }
  state.show_progress();
  const std::vector<RawDocument> batch = state.read_batch();
  for (const EncodedDocuments& piece : state.encode_batch(batch)) {
    if (!piece.problem.empty()) {
      throw DataError(piece.problem);
    }
    state.write_piece(piece);
  }
  if (state.file == state.files.size()) {
    state.finish();
    state.progress.reset();
    return false;
  }
  state.note();
  return true;
}

const TokenizeJob::Counts& TokenizeJob::counts() const {
  return state_->counts;
}

std::uint64_t TokenizeJob::bytes_total() const {
  return state_->total_bytes;
}

std::uint64_t TokenizeJob::resumed_at() const {
  return state_->resumed;
}

}  // namespace memphis
