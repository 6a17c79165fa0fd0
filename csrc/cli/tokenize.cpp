// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/tokenize.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <string_view>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/cli/threads.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"
#include "csrc/data/corpus.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

struct TokenizeArguments {
  std::vector<std::string> inputs;
  std::string output;
  std::string tokenizer;
  std::string pattern;
  TokenizeOptions options;
  bool no_bos = false;
  bool no_eos = false;
};

void require_new(const std::filesystem::path& prefix, const std::string& fingerprint) {
  std::error_code ignored;
  constexpr std::array<std::string_view, 4> kSuffixes = {
      ".bin", ".idx", ".mask", kTokensMetaSuffix};
  for (const std::string_view suffix : kSuffixes) {
    const std::filesystem::path path = prefix.string() + std::string(suffix);
    // A link too, wherever it leads: it would be renamed over.
    if (std::filesystem::exists(std::filesystem::symlink_status(path, ignored)) &&
        !TokenizeJob::is_begun(prefix, fingerprint)) {
      throw ConfigError(fmt::format(
          "{} is there (it is of other text, another tokenizer or other options, and nothing is "
          "overwritten); choose another --output, or remove it",
          path.string()));
    }
  }
}

void tokenize(TokenizeArguments& arguments) {
  using Clock = std::chrono::steady_clock;
  if (!arguments.pattern.empty() &&
      (arguments.tokenizer == "none" || arguments.tokenizer == ByteTokenizer::kName)) {
    throw ConfigError(
        fmt::format("--pattern has no tiktoken file to be of (--tokenizer is {}); leave it out, or "
                    "name the file in --tokenizer",
                    arguments.tokenizer));
  }
  const auto tokenizer = open_tokenizer(arguments.tokenizer, arguments.pattern);
  if (tokenizer == nullptr) {
    throw ConfigError(
        "--tokenizer is none (text is tokenized by a tokenizer); give byte or a path");
  }
  arguments.options.named_as_options = true;
  arguments.options.bos = !arguments.no_bos;
  arguments.options.eos = !arguments.no_eos;
  if (arguments.options.prompt_field.empty() != arguments.options.response_field.empty()) {
    throw ConfigError(
        "--prompt-field and --response-field stand together (a prompt is read and its response is "
        "learnt); give both");
  }
  if (!arguments.options.prompt_field.empty() &&
      arguments.options.prompt_field == arguments.options.response_field) {
    throw ConfigError(fmt::format(
        "--prompt-field and --response-field are both {} (what is learnt would stand before "
        "itself); name two fields, or one in --field",
        arguments.options.prompt_field));
  }
  if (std::filesystem::path(arguments.output).filename().empty()) {
    throw ConfigError(
        fmt::format("--output {} is a folder (it names files, without .bin); give {}corpus, say",
                    arguments.output,
                    arguments.output));
  }
  const std::vector<CorpusFile> files = list_corpus(arguments.inputs, arguments.options);
  const bool has_prompt = !arguments.options.prompt_field.empty();
  if ((has_prompt || arguments.options.field != TokenizeOptions().field) &&
      std::none_of(files.begin(), files.end(), [](const CorpusFile& file) {
        return file.framing == Framing::lines;
      })) {
    throw ConfigError(fmt::format(
        "{} has nothing to be of (no input is lines of JSON); leave it out, or name files "
        "of which each line is an object",
        has_prompt ? "--prompt-field" : "--field"));
  }
  const std::string fingerprint = TokenizeJob::fingerprint(files, *tokenizer, arguments.options);
  require_new(arguments.output, fingerprint);
  const bool was_done = TokenizeJob::is_done(arguments.output, fingerprint);
  TokenizeJob job(files, tokenizer, arguments.options, arguments.output);
  log_info("{} files, {} bytes; tokenizer {} of {} ids{}",
           files.size(),
           job.bytes_total(),
           tokenizer->kind(),
           tokenizer->vocab_size(),
           was_done ? "; was done before, and is kept"
           : job.resumed_at() == 0
               ? std::string()
               : fmt::format("; goes on at byte {}, where it was left", job.resumed_at()));
  const auto begin = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  while (job.step()) {
  }
  const TokenizeJob::Counts& counts = job.counts();
  if (counts.empty_documents + counts.blank_lines > 0) {
    log_info("left out {} empty documents and {} blank lines",
             counts.empty_documents,
             counts.blank_lines);
  }
  if (counts.replaced > 0) {
    log_warning("{}", describe_replaced(counts.replaced));
  }
  fmt::print("{}.bin: {} documents, {} tokens, of {} bytes of text, in {:.2f} s\n",
             arguments.output,
             counts.documents,
             counts.tokens,
             counts.text_bytes,
             seconds());
}

}  // namespace

void add_tokenize_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "tokenize",
      "Writes a corpus as a Megatron dataset, OUTPUT.bin and OUTPUT.idx, which data.train takes. A "
      "command that was stopped goes on when it is given again");
  auto arguments = std::make_shared<TokenizeArguments>();
  command
      ->add_option("inputs",
                   arguments->inputs,
                   "Files, folders and patterns: text or lines of JSON, plain, gzip or zstd")
      ->required();
  command->add_option("--output", arguments->output, "The dataset's name, without .bin")
      ->required();
  command->add_option("--tokenizer", arguments->tokenizer, "byte, or a path, as in data.tokenizer")
      ->required();
  command->add_option("--pattern", arguments->pattern, "As data.tokenizer_pattern");
  command->add_option("--field", arguments->options.field, "The text of a line of JSON");
  command->add_option("--prompt-field",
                      arguments->options.prompt_field,
                      "In its place: what is read and not learnt");
  command->add_option(
      "--response-field", arguments->options.response_field, "Behind the prompt: what is learnt");
  command->add_flag("--no-bos",
                    arguments->no_bos,
                    "No begin in front of a document, which else has one if the tokenizer has");
  command->add_flag("--no-eos",
                    arguments->no_eos,
                    "No end behind a document, which else has one if the tokenizer has");
  command->callback([arguments] {
    use_cores();
    tokenize(*arguments);
  });
}

}  // namespace memphis
