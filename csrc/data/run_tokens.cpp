// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/run_tokens.h"

#include <system_error>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/data/utf8.h"

namespace memphis {

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

}  // namespace memphis
