// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/npy.h"
#include "csrc/cli/commands.h"
#include "csrc/cli/model_argument.h"
#include "csrc/cli/output_file.h"
#include "csrc/cli/threads.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/file_kind.h"
#include "csrc/core/json.h"
#include "csrc/train/generator.h"

namespace memphis {
namespace {

struct TokenTable {
  std::int64_t num_sequences = 0;
  std::int64_t sequence_length = 0;
  std::vector<std::int32_t> tokens;
};

[[noreturn]] void refuse(const std::string& file, const std::string& problem) {
  throw DataError(file + ": " + problem +
                  " (expected {\"tokens\": [[1, 2, ...], ...]}, rows of one length)");
}

TokenTable read_tokens(const std::string& file, std::int64_t vocab_size) {
  const std::string text = read_text(file);
  if (const auto kind = recognise(std::as_bytes(std::span<const char>(text)))) {
    throw DataError(describe(file, *kind));
  }
  const auto object = parse_json(text);
  if (!object || !object->is_object() || !object->contains("tokens") ||
      !(*object)["tokens"].is_array()) {
    refuse(file, "it has no array `tokens`");
  }
  TokenTable table;
  for (const auto& row : (*object)["tokens"]) {
    if (!row.is_array() || row.empty()) {
      refuse(file, fmt::format("row {} is not a list of tokens", table.num_sequences));
    }
    const auto length = static_cast<std::int64_t>(row.size());
    if (table.num_sequences > 0 && length != table.sequence_length) {
      refuse(file,
             fmt::format("row {} has {} tokens and row 0 has {}",
                         table.num_sequences,
                         length,
                         table.sequence_length));
    }
    for (const auto& token : row) {
      if (!token.is_number_integer() || token.get<std::int64_t>() < 0 ||
          token.get<std::int64_t>() >= vocab_size) {
        refuse(file,
               fmt::format("row {} has the token {}, outside the vocabulary [0, {})",
                           table.num_sequences,
                           token.dump(),
                           vocab_size));
      }
      table.tokens.push_back(token.get<std::int32_t>());
    }
    table.sequence_length = length;
    ++table.num_sequences;
  }
  if (table.num_sequences == 0) {
    refuse(file, "`tokens` is empty");
  }
  return table;
}

void write_logits(const ModelArgument& argument,
                  const std::string& tokens,
                  const std::string& out) {
  require_may_write(
      {.argument = "out",
       .path = out,
       .what = "array of NumPy",
       .is_one = [](std::string_view beginning) { return beginning.starts_with(kNpyMagic); }});
  const ModelFolder folder(argument.path);
  const TokenTable table = read_tokens(tokens, folder.config.vocab_size);
  if (const std::int64_t limit = folder.config.max_sequence_length;
      limit > 0 && table.sequence_length > limit) {
    throw DataError(
        fmt::format("{} has rows of {} tokens and the model's max_position_embeddings is {} (its "
                    "rotations were "
                    "trained for no more); give at most {} a row",
                    tokens,
                    table.sequence_length,
                    limit,
                    limit));
  }
  LoadedModel loaded(folder, argument);
  const std::int64_t S = table.sequence_length;
  const std::int64_t V = loaded.config.vocab_size;
  std::optional<NpyWriter> writer;
  write_output([&] { writer.emplace(out, std::vector<std::int64_t>{table.num_sequences, S, V}); });
  // One sequence at a time: a row's logits do not depend on its neighbours.
  InferenceModel model(
      loaded.config, loaded.plan(1, S), loaded.residency, loaded.groups, loaded.stream.view());
  for (std::int64_t b = 0; b < table.num_sequences; ++b) {
    const auto begin = table.tokens.begin() + b * S;
    model.forward({begin, begin + S});
    for (std::int64_t t = 0; t < S; ++t) {
      const std::vector<float> logits = model.logits_of(t);
      require_finite_logits(logits, fmt::format("of row {}, token {}", b, t));
      write_output([&] { writer->write(logits); });
    }
  }
  write_output([&] { writer->close(); });
}

}  // namespace

void add_logits_command(CLI::App& program) {
  CLI::App* command = program.add_subcommand(
      "logits", "Writes a model's logits for given tokens as float32 [B, S, V] (.npy)");
  struct Arguments {
    ModelArgument model;
    std::string tokens;
    std::string out;
  };
  auto arguments = std::make_shared<Arguments>();
  add_model_argument(*command, arguments->model);
  command->add_option("tokens", arguments->tokens, "JSON: {\"tokens\": [[1, 2, ...], ...]}")
      ->required();
  command->add_option("out", arguments->out, "The .npy file to write")->required();
  command->callback([arguments] {
    use_cores();
    write_logits(arguments->model, arguments->tokens, arguments->out);
  });
}

}  // namespace memphis
