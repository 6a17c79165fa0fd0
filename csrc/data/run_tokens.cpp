// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/run_tokens.h"

#include <cerrno>
#include <system_error>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/data/id_scan.h"
#include "csrc/data/megatron_stream.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

constexpr const char* kContent = "content";  // of the meta file: the digest of what was written

std::filesystem::path meta_path(const std::filesystem::path& prefix) {
  return prefix.string() + std::string(kTokensMetaSuffix);
}

nlohmann::json read_meta(const std::filesystem::path& prefix) {
  auto meta = parse_json(read_text(meta_path(prefix))).value_or(nlohmann::json());
  return meta.is_object() ? meta : nlohmann::json::object();
}

// Without the index there is no dataset; the other files are written over.
void discard(const std::string& key,
             const std::filesystem::path& prefix,
             const std::string& damage) {
  log_warning(
      "{}: the tokens that the run keeps in {}.bin are damaged, and are made again from the text: "
      "{}",
      key,
      prefix.string(),
      damage);
  const std::filesystem::path index = prefix.string() + ".idx";
  if (const int error = remove_file(index); error != 0 && error != ENOENT) {
    throw PreflightError(fmt::format("cannot remove {} ({}); remove it by hand, and start again",
                                     index.string(),
                                     system_reason(error)));
  }
}

// What is wrong with them; empty where nothing is known to be.
std::string damage_of(const std::filesystem::path& prefix,
                      const Tokenizer& tokenizer,
                      FileRecords& records) {
  try {
    const std::filesystem::path index = prefix.string() + ".idx";
    const IdColumn ids = megatron_ids(index);
    if (const auto known = records.find(ids.file, scan_name(ids));
        known && known->largest_id == IdScan::kDamaged) {
      return "a part of them cannot be read or is no ids of the tokenizer";
    }
    const std::string now = open_megatron(index, tokenizer.vocab_size(), records)->fingerprint();
    const auto meta = read_meta(prefix);
    const auto written = meta.find(kContent);
    if (written != meta.end() && written->is_string() && *written != now) {
      return fmt::format("their digest is {}, and was {} when they were written",
                         now,
                         written->get_ref<const std::string&>());
    }
    return {};
  } catch (const DataError& error) {
    return error.what();
  }
}

}  // namespace

TokenizeOptions tokenize_options(const DataConfig& config) {
  TokenizeOptions options;
  options.field = config.field;
  options.prompt_field = config.prompt_field;
  options.response_field = config.response_field;
  return options;
}

std::filesystem::path records_of_run(const std::filesystem::path& run_dir) {
  return run_dir.empty() ? run_dir : run_dir / "tokens" / "files.json";
}

void require_tokenizer(const std::string& key,
                       const SortedFiles& sorted,
                       const Tokenizer* tokenizer) {
  if (tokenizer == nullptr && !sorted.documents.empty()) {
    throw ConfigError(fmt::format(
        "data.tokenizer is none and {} has text, {} (ids stand for no text without a tokenizer); "
        "set data.tokenizer to byte or to a path, or give tokens",
        key,
        sorted.documents.front().path.string()));
  }
}

void require_same_tokenizer(std::filesystem::path path, const Tokenizer* tokenizer) {
  path.replace_extension();
  path += kTokensMetaSuffix;
  std::error_code ignored;
  if (tokenizer == nullptr || !std::filesystem::exists(path, ignored)) {
    return;
  }
  const auto meta = parse_json(read_text(path)).value_or(nlohmann::json());
  const auto made_with = member_or(meta, "tokenizer", std::string());
  if (!made_with.empty() && made_with != tokenizer->fingerprint()) {
    throw DataError(fmt::format(
        "{} says that its tokens are of another tokenizer, {} {}, than data.tokenizer, {} {} (ids "
        "would stand for other text); set data.tokenizer to the one that made it, or to none",
        path.string(),
        member_or(meta, "tokenizer_kind", std::string("of unknown kind")),
        made_with,
        tokenizer->kind(),
        tokenizer->fingerprint()));
  }
}

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
    try {
      (void)megatron_ids(prefix.string() + ".idx");
      return nullptr;
    } catch (const DataError& error) {
      discard(key, prefix, error.what());
    }
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

bool discard_if_damaged(const std::string& key,
                        const std::filesystem::path& prefix,
                        const Tokenizer& tokenizer,
                        FileRecords& records) {
  const std::string damage = damage_of(prefix, tokenizer, records);
  if (damage.empty()) {
    return false;
  }
  discard(key, prefix, damage);
  return true;
}

void note_tokens(const std::filesystem::path& prefix, const std::string& digest) {
  auto meta = read_meta(prefix);
  if (meta.empty() || meta.contains(kContent)) {
    return;
  }
  meta[kContent] = digest;
  try {
    write_text_atomically(meta_path(prefix), meta.dump(1) + "\n");
  } catch (const Error& error) {
    log_info("the digest of {}.bin is not kept, and damage to it would not be known: {}",
             prefix.string(),
             error.what());
  }
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

}  // namespace memphis
