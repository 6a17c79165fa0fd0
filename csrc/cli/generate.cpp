// SPDX-License-Identifier: Apache-2.0
#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/cli/model_argument.h"
#include "csrc/core/error.h"
#include "csrc/data/tokenizer.h"
#include "csrc/train/generator.h"

namespace memphis {
namespace {

struct GenerateArguments {
  ModelArgument model;
  std::string prompt;
  SampleOptions sample;
};

void generate(const GenerateArguments& arguments) {
  const LoadedModel loaded(arguments.model);
  if (loaded.config.vocab_size < ByteTokenizer::kVocabSize) {
    throw DataError(fmt::format(
        "{} has a vocabulary of {} (text needs the byte tokenizer's {}); use `memphis logits` for "
        "models of other tokens",
        loaded.folder,
        loaded.config.vocab_size,
        ByteTokenizer::kVocabSize));
  }
  InferenceModel model(loaded.config,
                       1,
                       loaded.config.max_sequence_length,
                       loaded.parameters,
                       loaded.groups,
                       loaded.stream.view());
  fmt::print("{}{}\n", arguments.prompt, generate_text(model, arguments.prompt, arguments.sample));
}

}  // namespace

void add_generate_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand("generate", "Continues a text");
  auto arguments = std::make_shared<GenerateArguments>();
  add_model_argument(*command, arguments->model);
  command->add_option("--prompt", arguments->prompt, "The text to continue")->required();
  command->add_option("--tokens", arguments->sample.num_tokens, "How many tokens at most")
      ->check(at_least(1));
  command->add_option("--temperature", arguments->sample.temperature, "0: the most probable token")
      ->check(at_least(0));
  command->add_option("--seed", arguments->sample.seed, "Same seed, same text");
  command->callback([arguments] { generate(*arguments); });
}

}  // namespace memphis
