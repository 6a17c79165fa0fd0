// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/cli/commands.h"
#include "csrc/cli/model_argument.h"
#include "csrc/cli/threads.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/core/printable.h"
#include "csrc/core/progress.h"
#include "csrc/data/encoded_text.h"
#include "csrc/data/loader.h"
#include "csrc/data/questions.h"
#include "csrc/data/text_stream.h"
#include "csrc/data/utf8.h"
#include "csrc/train/batch.h"
#include "csrc/train/generator.h"
#include "csrc/train/window_losses.h"

namespace memphis {
namespace {

struct EvaluateArguments {
  ModelArgument model;
  std::vector<std::string> files;
  std::int64_t length = 0;
  std::int64_t batch = 8;
  bool json = false;
};

// Tokens of a window: the model's own limit, where that is not beyond what most texts are worth.
std::int64_t window_length(const ModelConfig& model, std::int64_t asked) {
  constexpr std::int64_t kMost = 2048;
  const std::int64_t limit = model.max_sequence_length;
  if (asked == 0) {
    return limit > 0 ? std::min(limit, kMost) : kMost;
  }
  if (limit > 0 && asked > limit) {
    throw ConfigError(
        fmt::format("--length is {} and the model's max_position_embeddings {} (its rotations were "
                    "trained for no more); use at most {}",
                    asked,
                    limit,
                    limit));
  }
  return asked;
}

struct Loss {
  double nats = 0;  // of all targets
  std::int64_t targets = 0;
};

// Windows of a model, several at a time.
class WindowPass {
 public:
  WindowPass(LoadedModel& loaded, std::int64_t num_sequences, std::int64_t length)
      : model_(loaded.config,
               loaded.plan(num_sequences, length),
               loaded.residency,
               loaded.groups,
               loaded.stream.view()),
        batch_(num_sequences, length, loaded.config.pad_id, loaded.stream.view().device),
        samples_({.sequence_length = length,
                  .micro_batch = num_sequences,
                  .global_batch = num_sequences},
                 {}) {}

  // Of each window of a loader, which are of `file`.
  template <class Windows>
  std::vector<Loss> losses(const Windows& windows, const std::string& file) {
    std::vector<Loss> result;
    Progress progress("evaluate", static_cast<std::int64_t>(windows.num_samples()), "windows");
    const std::int64_t B = model_.dims().B;
    const auto S = static_cast<std::ptrdiff_t>(model_.dims().S);
    for (std::uint64_t first = 0; first < windows.num_samples();
         first += static_cast<std::uint64_t>(B)) {
      batch_.fill(windows, first, samples_);
      const HostBatch host = batch_.micro_batch(0, B);
      std::vector<double> losses_T = model_.token_losses(host);
      const TensorView loss_T(losses_T.data(), {model_.dims().T}, DType::f64, Device::cpu);
      const std::vector<double> nats = sum_windows(loss_T, S);
      const auto count = static_cast<std::ptrdiff_t>(
          std::min<std::uint64_t>(windows.num_samples() - first, static_cast<std::uint64_t>(B)));
      for (std::ptrdiff_t b = 0; b < count; ++b) {
        const auto targets_S = host.targets_T.begin() + b * S;
        result.push_back(
            {.nats = nats[static_cast<std::size_t>(b)],
             .targets = std::count_if(
                 targets_S, targets_S + S, [](std::int32_t target) { return target >= 0; })});
      }
      progress.update(static_cast<std::int64_t>(result.size()), file);
    }
    return result;
  }

 private:
  InferenceModel model_;
  StepBatch batch_;
  SampleShare samples_;
};

Loss sum_of(const std::vector<Loss>& losses) {
  Loss sum;
  for (const Loss& loss : losses) {
    sum.nats += loss.nats;
    sum.targets += loss.targets;
  }
  return sum;
}

void require_finite(const std::string& file, double nats) {
  if (!std::isfinite(nats)) {
    throw DivergedError(
        fmt::format("the loss of {} is {} (the weights are finite, but what they compute grows "
                    "beyond the range "
                    "of their type); use an older checkpoint, or compute in f32",
                    file,
                    nats));
  }
}

void print_line(const nlohmann::ordered_json& line, const std::string& text, bool json) {
  fmt::print(
      "{}\n",
      json ? line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) : printable(text));
}

void print_text(const std::string& file, std::uint64_t num_bytes, const Loss& loss, bool json) {
  require_finite(file, loss.nats);
  const double mean = loss.nats / static_cast<double>(loss.targets);
  const double bits = loss.nats / std::numbers::ln2 / static_cast<double>(num_bytes);
  print_line(
      {{"file", file},
       {"loss", mean},
       {"bits_per_byte", bits},
       {"perplexity", std::exp(mean)},
       {"tokens", loss.targets},
       {"bytes", num_bytes}},
      fmt::format("{}: loss {:.4f} nats a token, {:.4f} bits a byte, perplexity {:.4f}, over "
                  "{} tokens of {} bytes",
                  file,
                  mean,
                  bits,
                  std::exp(mean),
                  loss.targets,
                  num_bytes),
      json);
}

void print_questions(const std::string& file, const QuestionScores& scores, bool json) {
  print_line({{"file", file},
              {"questions", scores.num_questions},
              {"accuracy", scores.accuracy},
              {"accuracy_normalised", scores.accuracy_normalised}},
             fmt::format("{}: accuracy {:.4f}, {:.4f} by mean log-probability a byte, over {} "
                         "questions",
                         file,
                         scores.accuracy,
                         scores.accuracy_normalised,
                         scores.num_questions),
             json);
}

// A loss on what is no text is measured as asked for, and is no loss on text.
void warn_of_encoding(const std::string& path, bool is_byte) {
  const InputFile file(path);
  Utf8Count count;
  std::vector<std::byte> piece(std::size_t{1} << 20U);
  for (std::uint64_t begin = 0; begin < file.size(); begin += piece.size()) {
    piece.resize(std::min<std::uint64_t>(piece.size(), file.size() - begin));
    file.read(begin, piece);
    count.add({reinterpret_cast<const char*>(piece.data()), piece.size()});
  }
  count.finish();
  if (count.places() > 0) {
    log_warning(
        "{}: {} places are not UTF-8, the first at byte {}, and are measured as {} (convert the "
        "text, as in `iconv -f LATIN1 -t UTF-8`)",
        path,
        count.places(),
        count.first_byte(),
        is_byte ? "the bytes that they are" : "U+FFFD");
  }
}

bool holds_questions(const std::filesystem::path& file) {
  return file.extension() == ".jsonl";
}

void evaluate(const EvaluateArguments& arguments) {
  const ModelFolder folder(arguments.model.path);
  const std::shared_ptr<const Tokenizer> tokenizer = tokenizer_of(folder);
  const std::int64_t length = window_length(folder.config, arguments.length);
  // All files before the weights: what is wrong with the last one is known at once.
  struct Text {
    std::vector<Question> questions;
    std::optional<QuestionWindows> windows;
    std::unique_ptr<TokenStream> stream;
    std::uint64_t num_bytes = 0;
  };
  std::vector<Text> texts;
  for (const std::string& file : arguments.files) {
    Text& text = texts.emplace_back();
    if (holds_questions(file)) {
      text.questions = read_questions(file);
      text.windows.emplace(text.questions, length, tokenizer.get());
      continue;
    }
    // Also where its bytes are no tokens: it refuses what is no text.
    auto bytes = std::make_unique<TextStream>(
        std::vector<TextFile>{{.path = file, .origin = TextFile::Origin::named}});
    text.num_bytes = bytes->documents().front().num_bytes;
    const bool is_byte = tokenizer->kind() == ByteTokenizer::kName;
    warn_of_encoding(file, is_byte);
    if (is_byte) {
      text.stream = std::move(bytes);
    } else {
      text.stream = std::make_unique<EncodedText>(file, *tokenizer);
    }
  }
  LoadedModel loaded(folder, arguments.model);
  WindowPass pass(loaded, arguments.batch, length);
  Loss all;
  std::uint64_t all_bytes = 0;
  std::size_t num_texts = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Text& text = texts[i];
    if (text.windows) {
      std::vector<double> nats;
      for (const Loss& loss : pass.losses(*text.windows, arguments.files[i])) {
        nats.push_back(loss.nats);
      }
      print_questions(arguments.files[i], score_questions(text.questions, nats), arguments.json);
      continue;
    }
    const ValidationLoader loader(
        *text.stream, {.begin = 0, .end = text.stream->num_tokens()}, length);
    const Loss loss = sum_of(pass.losses(loader, arguments.files[i]));
    print_text(arguments.files[i], text.num_bytes, loss, arguments.json);
    all.nats += loss.nats;
    all.targets += loss.targets;
    all_bytes += text.num_bytes;
    ++num_texts;
  }
  if (num_texts > 1) {
    print_text("all", all_bytes, all, arguments.json);
  }
}

}  // namespace

void add_evaluate_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "evaluate",
      "Measures a model on files: loss, bits a byte and perplexity of texts; of .jsonl files, "
      "whose "
      "lines have ctx, endings and label, the share of questions that it answers");
  auto arguments = std::make_shared<EvaluateArguments>();
  add_model_argument(*command, arguments->model);
  command->add_option("files", arguments->files, "Texts, and questions in .jsonl files")
      ->required();
  command
      ->add_option("--length",
                   arguments->length,
                   "Tokens of a window, each of which begins without a past; 0: as many as the "
                   "model has positions, at most 2048")
      ->check(whole(0));
  command->add_option("--batch", arguments->batch, "How many windows at a time")->check(whole(1));
  command->add_flag("--json", arguments->json, "A line of JSON for each file");
  command->callback([arguments] {
    use_cores();
    evaluate(*arguments);
  });
}

}  // namespace memphis
