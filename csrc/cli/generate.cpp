// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include "csrc/cli/commands.h"
#include "csrc/cli/model_argument.h"
#include "csrc/cli/threads.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/core/printable.h"
#include "csrc/train/generator.h"

namespace memphis {
namespace {

struct GenerateArguments {
  ModelArgument model;
  std::vector<std::string> prompts;
  std::string prompts_file;
  std::int64_t batch = 8;
  bool interactive = false;
  bool no_cache = false;
  SampleOptions sample;
};

// Positions that a model looks at: no more than the text will have, because its limit may be far
// beyond that and all of them take memory.
std::int64_t window_of(const ModelConfig& model, std::int64_t longest_prompt, std::int64_t tokens) {
  const std::int64_t wanted = 1 + longest_prompt + tokens;
  return model.max_sequence_length > 0 ? std::min(model.max_sequence_length, wanted) : wanted;
}

std::int64_t longest_of(const std::vector<std::string>& prompts) {
  std::size_t longest = 0;
  for (const std::string& prompt : prompts) {
    longest = std::max(longest, prompt.size());
  }
  return static_cast<std::int64_t>(longest);
}

// A prompt a line.
std::vector<std::string> read_prompts(const std::string& file) {
  std::vector<std::string> prompts;
  std::istringstream lines(read_text(file));
  for (std::string line; std::getline(lines, line);) {
    if (line.ends_with('\r')) {
      line.pop_back();  // of a file whose lines end with both
    }
    prompts.push_back(line);
  }
  if (prompts.empty()) {
    throw DataError(file + " has no line (each is a prompt); write one");
  }
  return prompts;
}

// Programs and files get what the model wrote; a terminal would obey it.
void show(std::string_view text) {
  const std::string whole(text);
  const std::string shown = isatty(STDOUT_FILENO) == 1 ? printable(whole, Lines::kept) : whole;
  std::fwrite(shown.data(), 1, shown.size(), stdout);
  std::fflush(stdout);
}

std::string_view name_of(GeneratedText::End end) {
  switch (end) {
    case GeneratedText::End::length:
      return "length";
    case GeneratedText::End::document:
      return "document";
    case GeneratedText::End::stop:
      return "stop";
    case GeneratedText::End::given_up:
      return "given up";
  }
  return "";
}

// How text is made of a model that is loaded, of up to so many prompts at a time.
class TextMaker {
 public:
  TextMaker(LoadedModel& loaded, std::int64_t num_sequences, std::int64_t length, bool no_cache) {
    if (no_cache) {
      window_.emplace(loaded.config,
                      loaded.plan(1, length),
                      loaded.residency,
                      loaded.groups,
                      loaded.stream.view());
      model_ = std::make_unique<WindowModel>(*window_);
    } else {
      model_ = std::make_unique<CachedModel>(loaded.config,
                                             num_sequences,
                                             length,
                                             loaded.residency,
                                             loaded.groups,
                                             loaded.stream.view());
    }
  }

  std::vector<GeneratedText> make(const std::vector<std::string>& prompts,
                                  const SampleOptions& options) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<GeneratedText> texts = generate_texts(*model_, prompts, options);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::int64_t num_tokens = 0;
    for (const GeneratedText& text : texts) {
      num_tokens += text.num_tokens;
    }
    log_info("{} tokens in {:.2f} s, {:.1f} tokens/s",
             num_tokens,
             seconds,
             static_cast<double>(num_tokens) / seconds);
    return texts;
  }

 private:
  std::optional<InferenceModel> window_;
  std::unique_ptr<SequenceModel> model_;
};

// One text, as it is made.
void write_text_of(TextMaker& maker, const std::string& prompt, SampleOptions options) {
  bool begun = false;  // not before there is something to go on with
  options.on_text = [&](std::size_t /*prompt*/, std::string_view text) {
    show(begun ? std::string(text) : prompt + std::string(text));
    begun = true;
  };
  maker.make({prompt}, options);
  show("\n");
}

// A line of JSON for each prompt, in their order.
void write_texts_of(TextMaker& maker,
                    const std::vector<std::string>& prompts,
                    const SampleOptions& options) {
  const std::vector<GeneratedText> texts = maker.make(prompts, options);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const nlohmann::ordered_json line = {{"prompt", prompts[i]},
                                         {"text", texts[i].text},
                                         {"tokens", texts[i].num_tokens},
                                         {"end", name_of(texts[i].end)}};
    fmt::print("{}\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }
}

// Each line that is read continues the text so far; an empty one begins a new text.
void talk(TextMaker& maker, SampleOptions options) {
  std::string text;
  const bool asks = isatty(STDIN_FILENO) == 1;
  while (true) {
    if (asks) {
      show("> ");
    }
    std::string line;
    if (!std::getline(std::cin, line)) {
      return;
    }
    if (line.empty()) {
      text.clear();
      continue;
    }
    text += line;
    options.on_text = [](std::size_t /*prompt*/, std::string_view piece) { show(piece); };
    const std::vector<GeneratedText> made = maker.make({text}, options);
    text += made.front().text;
    show("\n");
    ++options.seed;  // or the same draws would come again
  }
}

void require_one_source(const GenerateArguments& arguments) {
  const int sources = (arguments.prompts.empty() ? 0 : 1) +
                      (arguments.prompts_file.empty() ? 0 : 1) + (arguments.interactive ? 1 : 0);
  if (sources != 1) {
    throw ConfigError(fmt::format(
        "{} of --prompt, --prompts and --interactive are given (each says what is continued); give "
        "one of them",
        sources == 0 ? "none" : "several"));
  }
}

void generate(const GenerateArguments& arguments) {
  require_one_source(arguments);
  const std::vector<std::string> prompts =
      arguments.prompts_file.empty() ? arguments.prompts : read_prompts(arguments.prompts_file);
  const ModelFolder folder(arguments.model.path);
  const auto tokenizer = tokenizer_of(folder);
  SampleOptions sample = arguments.sample;
  sample.tokenizer = tokenizer.get();
  LoadedModel loaded(folder, arguments.model);
  constexpr std::int64_t kTalkTokens = 4096;  // of a talk, where the model sets no limit
  const std::int64_t length = window_of(loaded.config,
                                        arguments.interactive ? kTalkTokens : longest_of(prompts),
                                        arguments.sample.num_tokens);
  const auto num_prompts = static_cast<std::int64_t>(std::max<std::size_t>(prompts.size(), 1));
  TextMaker maker(loaded, std::min(arguments.batch, num_prompts), length, arguments.no_cache);
  if (arguments.interactive) {
    talk(maker, sample);
  } else if (prompts.size() == 1 && arguments.prompts_file.empty()) {
    write_text_of(maker, prompts.front(), sample);
  } else {
    write_texts_of(maker, prompts, sample);
  }
}

}  // namespace

void add_generate_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "generate",
      "Continues a text. A terminal is shown control characters escaped; pipes and "
      "files get the text as it is");
  auto arguments = std::make_shared<GenerateArguments>();
  add_model_argument(*command, arguments->model);
  command
      ->add_option("--prompt",
                   arguments->prompts,
                   "The text to continue; of several, a line of JSON each is written")
      ->allow_extra_args(false);
  command->add_option("--prompts", arguments->prompts_file, "A file with a prompt a line");
  command->add_flag(
      "--interactive",
      arguments->interactive,
      "Continues each line that is read, and the text before it; an empty line begins "
      "a new text");
  command->add_option("--batch", arguments->batch, "How many prompts at a time")->check(whole(1));
  command->add_option("--tokens", arguments->sample.num_tokens, "How many tokens at most")
      ->check(whole(1));
  command->add_option("--temperature", arguments->sample.temperature, "0: the most probable token")
      ->check(at_least(0));
  command
      ->add_option("--top-k", arguments->sample.top_k, "Draws of so many tokens at most; 0: of all")
      ->check(whole(0));
  command
      ->add_option("--top-p",
                   arguments->sample.top_p,
                   "Draws of the fewest tokens that have this probability together")
      ->check(within(0, 1));
  command
      ->add_option("--min-p",
                   arguments->sample.min_p,
                   "Draws of no token below this share of the most probable one's probability")
      ->check(within(0, 1));
  command
      ->add_option("--repetition-penalty",
                   arguments->sample.repetition_penalty,
                   "Divides the logits of tokens that have come before; 1: none")
      ->check(within(1e-3, 1e3));
  command
      ->add_option("--stop", arguments->sample.stop, "Ends the text before this; may be repeated")
      ->allow_extra_args(false);
  command->add_flag("--no-cache",
                    arguments->no_cache,
                    "Computes all of the text again for each token, as a check");
  constexpr std::int64_t kMaxSeed = std::numeric_limits<std::int64_t>::max() - 1;  // as run.seed
  command->add_option("--seed", arguments->sample.seed, "Same seed, same text")
      ->check(whole(0, kMaxSeed));
  command->callback([arguments] {
    use_cores();
    generate(*arguments);
  });
}

}  // namespace memphis
