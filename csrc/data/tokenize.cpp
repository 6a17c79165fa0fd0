// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/tokenize.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/core/parallel.h"
#include "csrc/core/write_advice.h"
#include "csrc/data/digest.h"
#include "csrc/data/megatron_stream.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// Of both the journal and the meta file, and of what ids depend on beside their fingerprints.
constexpr int kVersion = 1;
fs::path with(const fs::path& prefix, std::string_view suffix) {
  return prefix.string() + std::string(suffix);
}

[[noreturn]] void fail(std::string_view what, const fs::path& path, int error) {
  throw PreflightError(fmt::format("cannot {} {} ({}); {}, and start again: what is done is kept",
                                   what,
                                   path.string(),
                                   system_reason(error),
                                   write_advice(error)));
}

void rename_or_fail(const fs::path& from, const fs::path& to) {
  if (const int error = rename_path(from, to); error != 0) {
    fail("rename", from, error);
  }
}

void flush_names(const fs::path& directory) {
  if (const int error = flush_directory(directory); error != 0) {
    fail("write", directory, error);
  }
}

// A file that is written from some place on.
class AppendFile {
 public:
  explicit AppendFile(fs::path path)
      : path_(std::move(path)), descriptor_(open_path(path_, O_RDWR | O_CREAT, 0666)) {
    if (!descriptor_.is_open()) {
      fail("open", path_, errno);
    }
  }

  const fs::path& path() const { return path_; }

  // False where another process has it, or had it and has given the file its last name since: then
  // what is locked is no longer what lies at the path.
  bool lock() const {
    struct stat here {};
    struct stat there {};
    return ::flock(descriptor_.number(), LOCK_EX | LOCK_NB) == 0 &&
           ::fstat(descriptor_.number(), &here) == 0 && ::stat(path_.c_str(), &there) == 0 &&
           here.st_dev == there.st_dev && here.st_ino == there.st_ino;
  }

  std::uint64_t size() const {
    const off_t end = ::lseek(descriptor_.number(), 0, SEEK_END);
    if (end < 0) {
      fail("read", path_, errno);
    }
    return static_cast<std::uint64_t>(end);
  }

  void cut(std::uint64_t size) {
    int error = cut_file(descriptor_.number(), size);
    if (error == 0 && ::lseek(descriptor_.number(), static_cast<off_t>(size), SEEK_SET) < 0) {
      error = errno;
    }
    if (error != 0) {
      fail("cut", path_, error);
    }
  }

  void write(std::span<const std::byte> bytes) {
    if (const int error = write_all(descriptor_.number(), bytes); error != 0) {
      fail("write", path_, error);
    }
  }

  void sync() const {
    if (const int error = flush_file(descriptor_.number()); error != 0) {
      fail("write", path_, error);
    }
  }

 private:
  fs::path path_;
  Descriptor descriptor_;
};

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

// A document as it was read.
struct Raw {
  std::string bytes;
  std::size_t file = 0;
  std::uint64_t line = 0;  // counted from 1; 0: the whole file
  std::uint64_t offset = 0;
};

// What a run of documents has become.
struct Encoded {
  std::vector<std::int32_t> ids;
  std::vector<std::uint8_t> learnt;   // of each id, where there are prompts
  std::vector<std::int32_t> lengths;  // of each document that is not empty
  TokenizeJob::Counts counts;
  std::string problem;
};

std::string place_of(const CorpusFile& file, const Raw& raw) {
  return raw.line == 0
             ? file.path.string()
             : fmt::format("{}, line {}, byte {}", file.path.string(), raw.line, raw.offset);
}

// The text of one field, or what is wrong.
const std::string* field_of(const Json& record,
                            const std::string& name,
                            const std::string& key,
                            std::string& problem) {
  const auto found = record.find(name);
  if (found == record.end()) {
    std::string fields;
    for (const auto& [other, value] : record.items()) {
      fields += (fields.empty() ? "" : ", ") + other;
      if (fields.size() > 200) {
        fields += ", ...";
        break;
      }
    }
    problem = fmt::format("has no field {} (its fields are {}); set {} to the one of the text",
                          name,
                          fields.empty() ? "none" : fields,
                          key);
    return nullptr;
  }
  if (!found->is_string()) {
    problem = fmt::format(
        "has a field {} that is no string but {} (a text is a string); set {} to "
        "the one of the text",
        name,
        found->type_name(),
        key);
    return nullptr;
  }
  return &found->get_ref<const std::string&>();
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

}  // namespace

struct TokenizeJob::State {
  std::vector<CorpusFile> files;
  std::shared_ptr<const Tokenizer> tokenizer;
  TokenizeOptions options;
  fs::path prefix;
  std::string fingerprint;
  bool wide = false;  // ids have 32 bits, else 16
  bool masked = false;

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

  fs::path partial(std::string_view suffix) const {
    return with(prefix, std::string(suffix) + ".partial");
  }

  std::uint64_t id_bytes() const { return wide ? 4 : 2; }

  // ------------------------------------------------------------------------------------ the journal
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

  // -------------------------------------------------------------------------------------- a batch
  std::vector<Raw> read_batch() {
    std::vector<Raw> batch;
    std::uint64_t bytes = 0;
    while (bytes < options.batch_bytes && file < files.size()) {
      if (!reader) {
        reader.emplace(files[file], options.max_document_bytes);
      }
      Raw raw{.bytes = {}, .file = file, .line = 0, .offset = reader->offset()};
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

  void put(std::string_view text, bool learnt, Encoded& out) const {
    std::uint64_t replaced = 0;
    if (tokenizer->kind() != ByteTokenizer::kName && !is_utf8(text)) {
      (void)with_replacements(text, replaced);
    }
    out.counts.replaced += replaced;
    tokenizer->append(text, out.ids);
    out.learnt.resize(masked ? out.ids.size() : 0, learnt ? 1 : 0);
  }

  // Sets out.problem where the document is none.
  void encode(const Raw& raw, Encoded& out) const {
    const CorpusFile& from = files[raw.file];
    std::optional<Json> record;
    const std::string* text = &raw.bytes;
    const std::string* response = nullptr;
    if (from.framing == Framing::lines) {
      if (is_blank(raw.bytes)) {
        ++out.counts.blank_lines;
        return;
      }
      std::string problem;
      try {
        record = Json::parse(raw.bytes);
      } catch (const Json::exception& error) {
        const std::string_view why = error.what();
        problem = fmt::format("is not JSON ({}); correct it or remove the line",
                              why.substr(std::min(why.find("] ") + 2, why.size())));
      }
      if (record && !record->is_object()) {
        problem = fmt::format(
            "is no object but {} (a line is an object with the text in a field); "
            "correct it or remove the line",
            record->type_name());
      }
      if (problem.empty()) {
        text = masked ? field_of(*record, options.prompt_field, "data.prompt_field", problem)
                      : field_of(*record, options.field, "data.field", problem);
      }
      if (problem.empty() && masked) {
        response = field_of(*record, options.response_field, "data.response_field", problem);
      }
      if (!problem.empty()) {
        out.problem = place_of(from, raw) + " " + problem;
        return;
      }
    } else if (const std::size_t nul = raw.bytes.find('\0'); nul != std::string::npos) {
      out.problem = fmt::format(
          "{} has a NUL byte at {} (so it is not text); leave it out, or remove such bytes, as in "
          "`tr -d '\\0'`",
          from.path.string(),
          nul);
      return;
    }
    if (text->empty() && (response == nullptr || response->empty())) {
      ++out.counts.empty_documents;
      return;
    }
    const std::size_t begin = out.ids.size();
    const SpecialTokens special = tokenizer->special();
    if (options.bos && special.bos >= 0) {
      out.ids.push_back(special.bos);
      out.learnt.resize(masked ? out.ids.size() : 0, 0);
    }
    put(*text, response == nullptr, out);  // a text that is no line has no prompt
    if (response != nullptr) {
      put(*response, true, out);
    }
    if (options.eos && special.eos >= 0) {
      out.ids.push_back(special.eos);
      out.learnt.resize(masked ? out.ids.size() : 0, 1);
    }
    const std::size_t length = out.ids.size() - begin;
    if (length == 0) {
      ++out.counts.empty_documents;
      return;
    }
    if (length > INT32_MAX) {
      out.problem = fmt::format(
          "{} has {} tokens (a sequence of a Megatron dataset has at most "
          "2^31 - 1); split it into several",
          place_of(from, raw),
          length);
      return;
    }
    out.lengths.push_back(static_cast<std::int32_t>(length));
    out.counts.text_bytes += text->size() + (response == nullptr ? 0 : response->size());
    ++out.counts.documents;
  }

  std::vector<Encoded> encode_batch(const std::vector<Raw>& batch) const {
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
    std::vector<Encoded> pieces(ends.size());
    parallel_chunks(static_cast<std::int64_t>(ends.size()), [&](std::int64_t chunk) {
      const auto index = static_cast<std::size_t>(chunk);
      Encoded& piece = pieces[index];
      for (std::size_t i = index == 0 ? 0 : ends[index - 1]; i < ends[index]; ++i) {
        encode(batch[i], piece);
        if (!piece.problem.empty()) {
          return;
        }
      }
    });
    return pieces;
  }

  void write_piece(const Encoded& piece) {
    if (wide) {
      tokens->write(bytes_of(piece.ids));
    } else {
      const std::vector<std::uint16_t> narrow(piece.ids.begin(), piece.ids.end());
      tokens->write(bytes_of(narrow));
    }
    lengths->write(bytes_of(piece.lengths));
    if (mask) {
      mask->write(bytes_of(piece.learnt));
    }
    counts.documents += piece.counts.documents;
    counts.tokens += piece.ids.size();
    counts.text_bytes += piece.counts.text_bytes;
    counts.empty_documents += piece.counts.empty_documents;
    counts.blank_lines += piece.counts.blank_lines;
    counts.replaced += piece.counts.replaced;
  }

  // ----------------------------------------------------------------------------------- the index
  template <class Value, class Next>
  static void write_values(AppendFile& out, std::uint64_t count, const Next& next) {
    constexpr std::uint64_t kPiece = 1U << 16U;
    std::vector<Value> values;
    for (std::uint64_t first = 0; first < count; first += kPiece) {
      values.clear();
      for (std::uint64_t i = first; i < std::min(first + kPiece, count); ++i) {
        values.push_back(next(i));
      }
      out.write(bytes_of(values));
    }
  }

  void finish() {
    for (auto* part : {&tokens, &lengths, &mask}) {
      if (*part) {
        (*part)->sync();
      }
    }
    const fs::path index_path = partial(".idx");
    {
      AppendFile index(index_path);
      index.cut(0);
      index.write(std::as_bytes(std::span("MMIDIDX\0", 9)));
      constexpr std::uint8_t kInt32 = 4;
      constexpr std::uint8_t kUint16 = 8;
      const auto put_value = [&](auto value) { index.write(std::as_bytes(std::span(&value, 1))); };
      put_value(std::uint64_t{1});
      put_value(wide ? kInt32 : kUint16);
      put_value(counts.documents);
      put_value(counts.documents + 1);
      const InputFile kept(lengths->path());
      std::vector<std::int32_t> piece;
      constexpr std::uint64_t kPiece = 1U << 16U;
      const auto for_lengths = [&](const auto& body) {
        for (std::uint64_t first = 0; first < counts.documents; first += kPiece) {
          piece.resize(std::min(kPiece, counts.documents - first));
          kept.read(4 * first, std::as_writable_bytes(std::span(piece)));
          body();
        }
      };
      for_lengths([&] { index.write(bytes_of(piece)); });
      std::int64_t pointer = 0;
      std::vector<std::int64_t> pointers;
      for_lengths([&] {
        pointers.clear();
        for (const std::int32_t length : piece) {
          pointers.push_back(pointer);
          pointer += length * static_cast<std::int64_t>(id_bytes());
        }
        index.write(bytes_of(pointers));
      });
      write_values<std::int64_t>(index, counts.documents + 1, [](std::uint64_t i) {
        return static_cast<std::int64_t>(i);
      });
      index.sync();
    }
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
  state.prefix = std::move(prefix);
  // As Megatron chooses: 16 bits below 65500.
  state.wide = state.tokenizer->vocab_size() >= 65500;
  state.masked = !state.options.prompt_field.empty();
  if (is_done(state.prefix, state.fingerprint)) {
    state.finished = true;
    const Json meta = parse_json(read_text(with(state.prefix, kTokensMetaSuffix))).value_or(Json());
    state.counts = {.documents = meta.value("documents", std::uint64_t{0}),
                    .tokens = meta.value("tokens", std::uint64_t{0}),
                    .text_bytes = meta.value("text_bytes", std::uint64_t{0}),
                    .empty_documents = meta.value("empty_documents", std::uint64_t{0}),
                    .blank_lines = meta.value("blank_lines", std::uint64_t{0}),
                    .replaced = meta.value("replaced", std::uint64_t{0})};
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
  if (const int error = make_directories(folder); error != 0) {
    fail("open", folder, error);
  }
  state.tokens.emplace(state.partial(".bin"));
  if (!state.tokens->lock()) {
    throw PreflightError(fmt::format(
        "{} is being written by another process (it holds a lock on it); let it end, or choose "
        "another output",
        state.tokens->path().string()));
  }
  state.lengths.emplace(state.partial(".lengths"));
  if (state.masked) {
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
  return root.is_object() && root.value("fingerprint", std::string()) == fingerprint;
}

bool TokenizeJob::step() {
  State& state = *state_;
  if (state.finished) {
    return false;
  }
  const std::vector<Raw> batch = state.read_batch();
  for (const Encoded& piece : state.encode_batch(batch)) {
    if (!piece.problem.empty()) {
      throw DataError(piece.problem);
    }
    state.write_piece(piece);
  }
  if (state.file == state.files.size()) {
    state.finish();
    return false;
  }
  state.note();
  return true;
}

const TokenizeJob::Counts& TokenizeJob::counts() const {
  return state_->counts;
}

std::uint64_t TokenizeJob::bytes_done() const {
  return state_->done_bytes + (state_->reader ? state_->reader->bytes_read() : 0);
}

std::uint64_t TokenizeJob::bytes_total() const {
  return state_->total_bytes;
}

std::uint64_t TokenizeJob::resumed_at() const {
  return state_->resumed;
}

}  // namespace memphis
