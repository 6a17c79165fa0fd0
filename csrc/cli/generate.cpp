// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/checkpoint/folder_tokenizer.h"
#include "csrc/cli/commands.h"
#include "csrc/cli/model_argument.h"
#include "csrc/cli/threads.h"
#include "csrc/core/error.h"
#include "csrc/core/printable.h"
#include "csrc/data/tokenizer.h"
#include "csrc/train/generator.h"

namespace memphis {
namespace {

struct GenerateArguments {
  ModelArgument model;
  std::string prompt;
  SampleOptions sample;
};

// Before the weights are read: of another tokenizer's ids the bytes of a text are a random choice.
void require_byte_tokenizer(const ModelFolder& folder) {
  const FolderTokenizer tokenizer = find_tokenizer(folder.path, folder.config.vocab_size);
  if (!tokenizer.is_byte) {
    const std::string files = describe_files(folder.path, tokenizer);
    throw DataError(
        fmt::format("{} has a vocabulary of {} and {} (memphis knows one tokenizer, of {} ids for "
                    "bytes{}); give token ids to `memphis logits`{}",
                    folder.path.string(),
                    folder.config.vocab_size,
                    files.empty() ? "no tokenizer" : "the tokenizer " + files,
                    ByteTokenizer::kVocabSize,
                    files.empty() ? ", and config.json does not say that the ids are its" : "",
                    files.empty() ? fmt::format(", or, if the model was trained on bytes, write "
                                                "\"tokenizer_class\": \"{}\" into its config.json",
                                                kByteTokenizerClass)
                                  : ""));
  }
  if (folder.config.vocab_size < ByteTokenizer::kVocabSize) {
    throw DataError(fmt::format(
        "{} has a vocabulary of {} (text needs the byte tokenizer's {}); use `memphis logits` for "
        "models of other tokens",
        folder.path.string(),
        folder.config.vocab_size,
        ByteTokenizer::kVocabSize));
  }
}

// Positions that are computed at a time: no more than the text will have, because a model's limit
// may be far beyond that and all of them take memory.
std::int64_t window_of(const ModelConfig& model, const GenerateArguments& arguments) {
  const std::int64_t wanted =
      1 + static_cast<std::int64_t>(arguments.prompt.size()) + arguments.sample.num_tokens;
  return model.max_sequence_length > 0 ? std::min(model.max_sequence_length, wanted) : wanted;
}

void generate(const GenerateArguments& arguments) {
  const ModelFolder folder(arguments.model.path);
  require_byte_tokenizer(folder);
  LoadedModel loaded(folder, arguments.model);
  InferenceModel model(loaded.config,
                       loaded.plan(1, window_of(loaded.config, arguments)),
                       loaded.residency,
                       loaded.groups,
                       loaded.stream.view());
  const std::string text =
      arguments.prompt + generate_text(model, arguments.prompt, arguments.sample);
  // Programs and files get what the model wrote; a terminal would obey it.
  fmt::print("{}\n", isatty(STDOUT_FILENO) == 1 ? printable(text, Lines::kept) : text);
}

}  // namespace

void add_generate_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "generate",
      "Continues a text. A terminal is shown control characters escaped; pipes and "
      "files get the text as it is");
  auto arguments = std::make_shared<GenerateArguments>();
  add_model_argument(*command, arguments->model);
  command->add_option("--prompt", arguments->prompt, "The text to continue")->required();
  command->add_option("--tokens", arguments->sample.num_tokens, "How many tokens at most")
      ->check(at_least(1));
  command->add_option("--temperature", arguments->sample.temperature, "0: the most probable token")
      ->check(at_least(0));
  command->add_option("--seed", arguments->sample.seed, "Same seed, same text");
  command->callback([arguments] {
    use_cores();
    generate(*arguments);
  });
}

}  // namespace memphis
