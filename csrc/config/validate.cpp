// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/validate.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/config/checker.h"
#include "csrc/config/resolve_parallel.h"
#include "csrc/config/schema.h"
#include "csrc/config/words.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

// Of csrc/data/tokenizer.h, which stands on this layer: 256 bytes, and pad, bos and eos.
constexpr std::int64_t kByteVocabulary = 259;
// Rows are counted in 32 bits: the offsets of the experts are i32.
constexpr std::int64_t kMaxRows = (std::int64_t{1} << 31) - 1;
// Of parameters, and of activations: 16 bytes each, over all of them, stay within 64 bits.
constexpr double kMaxElements = 0x1p56;

// "a or b" for the divisors of `number` on both sides of `wanted`.
std::string nearest_divisors(std::int64_t number, std::int64_t wanted) {
  std::int64_t below = std::min(wanted, number);
  while (number % below != 0) {
    --below;
  }
  if (wanted >= number) {
    return text_of(number);
  }
  std::int64_t above = wanted;
  while (number % above != 0) {
    ++above;
  }
  return text_of(below) + " or " + text_of(above);
}

void check_required(Config& config, const Checker& checker) {
  for (const Field& field : fields_of(config)) {
    const Integer* integer = std::get_if<Integer>(&field.target);
    checker.expect(integer == nullptr || !integer->required || *integer->value != 0,
                   {},
                   field.path() + " is not given (it has no default); add it" +
                       (field.section == "model" ? ", or a model.preset" : ""));
  }
}

void resolve_heads(ModelConfig& model, const Checker& checker) {
  if (model.num_kv_heads == 0) {
    model.num_kv_heads = model.num_heads;
  }
  checker.expect(model.num_heads % model.num_kv_heads == 0,
                 {"model.num_kv_heads", "model.num_heads"},
                 shown("model.num_kv_heads", model.num_kv_heads) + " does not divide " +
                     shown("model.num_heads", model.num_heads) +
                     " (a key/value head serves equally many query heads as any other); use " +
                     nearest_divisors(model.num_heads, model.num_kv_heads));
  if (model.head_dim == 0) {
    checker.expect(model.d_model % model.num_heads == 0,
                   {"model.num_heads", "model.d_model"},
                   shown("model.num_heads", model.num_heads) + " does not divide " +
                       shown("model.d_model", model.d_model) +
                       " (without model.head_dim, a head is d_model / num_heads wide); use " +
                       nearest_divisors(model.d_model, model.num_heads) +
                       ", or give model.head_dim");
    model.head_dim = model.d_model / model.num_heads;
  }
  checker.expect(model.head_dim % 2 == 0,
                 {"model.head_dim", "model.num_heads", "model.d_model"},
                 shown("model.head_dim", model.head_dim) +
                     " is odd (the rotary embedding turns pairs of elements); use " +
                     (model.head_dim > 1 ? text_of(model.head_dim - 1) + " or " : std::string()) +
                     text_of(model.head_dim + 1));
}

void resolve_model(ModelConfig& model,
                   const BatchConfig& batch,
                   bool is_bytes,
                   const Checker& checker) {
  resolve_heads(model, checker);
  if (model.embedding_multiplier == 0) {
    model.embedding_multiplier = std::sqrt(static_cast<double>(model.d_model));
  }
  if (model.attention_multiplier == 0) {
    model.attention_multiplier = 1 / std::sqrt(static_cast<double>(model.head_dim));
  }
  if (model.max_sequence_length == 0) {
    model.max_sequence_length = batch.sequence_length;
  }
  checker.expect(model.experts_per_token <= model.num_experts,
                 {"model.experts_per_token", "model.num_experts"},
                 shown("model.experts_per_token", model.experts_per_token) + " exceeds " +
                     shown("model.num_experts", model.num_experts) +
                     " (a token visits an expert at most once); use at most " +
                     text_of(model.num_experts));
  checker.expect(!is_bytes || model.vocab_size >= kByteVocabulary,
                 {"model.vocab_size"},
                 shown("model.vocab_size", model.vocab_size) +
                     " is smaller than the byte tokenizer's " + text_of(kByteVocabulary) +
                     " (256 bytes and 3 special tokens); use at least " + text_of(kByteVocabulary));
  checker.expect(model.pad_id < model.vocab_size,
                 {"model.pad_id", "model.vocab_size"},
                 shown("model.pad_id", model.pad_id) + " is not below " +
                     shown("model.vocab_size", model.vocab_size) +
                     " (it is the id of a token); use 0, or -1 for none");
  checker.expect(model.attention_temperature_len != 1,
                 {"model.attention_temperature_len"},
                 "model.attention_temperature_len is 1 (the temperature divides by its logarithm); "
                 "use 0 for none, or at least 2");
  checker.expect(model.max_sequence_length >= batch.sequence_length,
                 {"model.max_sequence_length", "batch.sequence_length"},
                 shown("model.max_sequence_length", model.max_sequence_length) +
                     " is shorter than " + shown("batch.sequence_length", batch.sequence_length) +
                     " (the model is trained on that many positions); use at least " +
                     text_of(batch.sequence_length));
}

void check_batch(const BatchConfig& batch, const Checker& checker) {
  const std::int64_t below = batch.global_batch / batch.micro_batch * batch.micro_batch;
  const std::string nearest =
      (below > 0 ? text_of(below) + " or " : std::string()) + text_of(below + batch.micro_batch);
  checker.expect(below == batch.global_batch,
                 {"batch.global_batch", "batch.micro_batch"},
                 shown("batch.global_batch", batch.global_batch) + " is not a multiple of " +
                     shown("batch.micro_batch", batch.micro_batch) +
                     " (gradients accumulate over whole micro-batches); use " + nearest);
}

// In floating point, which does not overflow; a model within these bounds has no product of sizes
// that does in 64 bits.
void check_sizes(const Config& config, const Checker& checker) {
  const ModelConfig& model = config.model;
  const auto real = [](std::int64_t value) { return static_cast<double>(value); };
  const double D = real(model.d_model);
  const double q_width = real(model.num_heads * model.head_dim);
  const double qkv_width = real((model.num_heads + 2 * model.num_kv_heads) * model.head_dim);
  const double expert_width = 3 * real(model.ffn_dim);
  const double dense_width = 3 * real(model.dense_ffn_dim);
  const double parameters =
      2 * real(model.vocab_size) * D +
      real(model.num_layers) * D *
          (qkv_width + q_width + real(model.num_experts) * (expert_width + 1) + dense_width);
  checker.expect(parameters <= kMaxElements,
                 {"model.num_layers", "model.d_model", "model.ffn_dim"},
                 "the model has " + rounded(parameters) +
                     " parameters (their bytes are counted in 64 bits, with room for " +
                     rounded(kMaxElements) + "); use smaller sizes");

  const std::int64_t tokens = config.batch.micro_batch * config.batch.sequence_length;
  const std::int64_t rows = tokens * model.experts_per_token;
  checker.expect(rows <= kMaxRows,
                 {"batch.micro_batch", "batch.sequence_length", "model.experts_per_token"},
                 "a micro-batch has " + text_of(rows) +
                     " rows for its experts (micro_batch * sequence_length * experts_per_token is "
                     "counted in 32 bits); use a smaller batch.micro_batch");
  const double activations =
      real(tokens) * real(model.vocab_size) +
      real(model.num_layers) * (real(tokens) * (qkv_width + q_width + 8 * D + dense_width) +
                                real(rows) * (expert_width + 2 * D));
  checker.expect(activations <= kMaxElements,
                 {"batch.micro_batch", "batch.sequence_length"},
                 "a micro-batch has " + rounded(activations) +
                     " activations (their bytes are counted in 64 bits, with room for " +
                     rounded(kMaxElements) + "); use a smaller batch.micro_batch");
}

std::int64_t derived_decay_steps(const ScheduleConfig& schedule) {
  constexpr std::int64_t kDecayPart = 5;
  return std::clamp<std::int64_t>(
      schedule.steps / kDecayPart, 1, schedule.steps - schedule.warmup_steps);
}

void resolve_schedule(ScheduleConfig& schedule, const Checker& checker) {
  checker.expect(schedule.warmup_steps < schedule.steps,
                 {"schedule.warmup_steps", "schedule.steps"},
                 shown("schedule.warmup_steps", schedule.warmup_steps) + " is not below " +
                     shown("schedule.steps", schedule.steps) +
                     " (the learning rate would never leave its warm-up); use at most " +
                     text_of(schedule.steps - 1));
  const std::int64_t after_warmup = schedule.steps - schedule.warmup_steps;
  if (schedule.decay_steps == 0) {
    schedule.decay_steps = derived_decay_steps(schedule);
  }
  checker.expect(schedule.decay != Decay::wsd || schedule.decay_steps <= after_warmup,
                 {"schedule.decay_steps", "schedule.steps"},
                 shown("schedule.decay_steps", schedule.decay_steps) + " exceeds the " +
                     text_of(after_warmup) +
                     " steps after the warm-up (the final decay starts when that is over); use at "
                     "most " +
                     text_of(after_warmup));
}

void check_run(const Config& config, const Checker& checker) {
  checker.expect(!config.run.dir.empty(),
                 {"run.dir"},
                 "run.dir is empty (checkpoints and metrics need a directory); name one, as in "
                 "runs/tiny");
}

void check_memory(const Config& config, const Checker& checker) {
  const MemoryConfig& memory = config.memory;
  const std::int64_t layers = memory.recompute_layers;
  checker.expect(layers <= config.model.num_layers,
                 {"memory.recompute_layers", "model.num_layers"},
                 shown("memory.recompute_layers", layers) + " exceeds " +
                     shown("model.num_layers", config.model.num_layers) +
                     " (layers are counted from the first); use at most that, or 0 for all");
  constexpr std::int64_t kHeadMultiple = 8;
  checker.expect(
      memory.head_rows % kHeadMultiple == 0,
      {"memory.head_rows"},
      shown("memory.head_rows", memory.head_rows) +
          " is not a multiple of 8 (each run of tokens begins aligned); use " +
          std::to_string(memory.head_rows / kHeadMultiple * kHeadMultiple + kHeadMultiple));
  const bool listed = !memory.recompute_auto && memory.recompute.any();
  checker.expect(
      layers == 0 || listed,
      {"memory.recompute_layers", "memory.recompute"},
      shown("memory.recompute_layers", layers) + " has nothing to hold for " +
          (memory.recompute_auto ? "(memory.recompute is auto, which chooses the layers too)"
                                 : "(memory.recompute is none)") +
          "; leave it out, or say in memory.recompute what is computed again");
}

void check_data(const Config& config, const Checker& checker) {
  const DataConfig& data = config.data;
  const auto check_entries = [&](std::string_view key, const std::vector<std::string>& entries) {
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::string path = std::string(key) + "[" + std::to_string(i) + "]";
      checker.expect(!entries[i].empty(),
                     {path, key},
                     path + " is empty (an entry is a file, a directory or a pattern); remove it");
    }
  };
  check_entries("data.train", data.train);
  check_entries("data.validation", data.validation);
  check_entries("data.evaluate", data.evaluate);
  checker.expect(!data.evaluate.empty() || config.metrics.evaluate_every == 0,
                 {"metrics.evaluate_every", "data.evaluate"},
                 shown("metrics.evaluate_every", config.metrics.evaluate_every) +
                     " has nothing to read (data.evaluate is empty); name files of questions "
                     "there, or set metrics.evaluate_every to 0");
  const auto check_names = [&](std::string_view key,
                               const std::vector<std::string>& paths,
                               const std::vector<DataEntry>& sets) {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < sets.size(); ++i) {
      const std::string path = std::string(key) + "[" + std::to_string(i) + "]";
      const std::string name = name_of_entry(paths[i], sets[i]);
      const bool is_word = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '_' || c == '-' || c == '.';
      });
      checker.expect(is_word,
                     {path, key},
                     path + " is called " + quote(name) +
                         " (metrics carry the name, which is of letters, digits, _, - and .); "
                         "give it another, as in {path: a.txt, name: a}");
      checker.expect(std::find(names.begin(), names.end(), name) == names.end(),
                     {path, key},
                     path + " is called " + name +
                         ", as another entry is (metrics tell them apart by it); give it a name "
                         "of its own, as in {path: a.txt, name: a}");
      names.push_back(name);
    }
  };
  check_names("data.train", data.train, data.mixture);
  check_names("data.validation", data.validation, data.validation_sets);
  checker.expect(!data.tokenizer.empty(),
                 {"data.tokenizer"},
                 "data.tokenizer is empty (it is byte, none or a path); leave it out for byte");
  checker.expect(
      data.tokenizer_pattern.empty() || (data.tokenizer != "byte" && data.tokenizer != "none"),
      {"data.tokenizer_pattern", "data.tokenizer"},
      "data.tokenizer_pattern has no tiktoken file to be of (data.tokenizer is " + data.tokenizer +
          "); leave it out, or name the file in data.tokenizer");
  checker.expect(data.prompt_field.empty() == data.response_field.empty(),
                 {data.prompt_field.empty() ? "data.response_field" : "data.prompt_field"},
                 std::string("data.") +
                     (data.prompt_field.empty() ? "response_field" : "prompt_field") +
                     " stands alone (a prompt is read and its response is the target); give "
                     "data.prompt_field and data.response_field");
  checker.expect(data.prompt_field.empty() || data.prompt_field != data.response_field,
                 {"data.response_field", "data.prompt_field"},
                 "data.prompt_field and data.response_field are both " + quote(data.prompt_field) +
                     " (what is learnt would stand before itself); name two fields, or one in "
                     "data.field");
  checker.expect(
      !data.field.empty() || !data.prompt_field.empty(),
      {"data.field"},
      "data.field is empty (it names the text of a line of JSON); leave it out for text");
  checker.expect(
      data.tokenizer != "none" || data.evaluate.empty(),
      {"data.evaluate", "data.tokenizer"},
      "data.evaluate has questions of text (data.tokenizer is none); name the tokenizer, "
      "or leave the questions out");
  checker.expect(
      !data.validation.empty() || data.held_out > 0 || config.metrics.validate_every == 0,
      {"metrics.validate_every", "data.held_out"},
      shown("metrics.validate_every", config.metrics.validate_every) +
          " has nothing to read (data.validation is empty and data.held_out is 0); give "
          "one of these, or set metrics.validate_every to 0");
}

}  // namespace

void resolve(Config& config, const Sources& sources, std::int64_t num_ranks) {
  const Checker checker(sources);
  check_required(config, checker);
  resolve_model(config.model, config.batch, config.data.tokenizer == "byte", checker);
  check_batch(config.batch, checker);
  check_sizes(config, checker);
  resolve_schedule(config.schedule, checker);
  resolve_parallel(config, num_ranks, checker);
  check_run(config, checker);
  check_memory(config, checker);
  check_data(config, checker);
}

void require_used(const Config& config, const Sources& sources) {
  const Checker checker(sources);
  const Config defaults;
  // A value that is given and the default, as a config has it that was printed, asks for nothing.
  const auto expect = [&](bool used,
                          bool is_default,
                          Paths paths,
                          const std::string& what,
                          const std::string& why,
                          const std::string& fix) {
    checker.expect(used || is_default || !sources.has(*paths.begin()),
                   paths,
                   what + " has nothing to be of (" + why + "); leave it out, or " + fix);
  };
  const ModelConfig& model = config.model;
  expect(model.init == InitScheme::normal,
         model.init_std == defaults.model.init_std,
         {"model.init_std", "model.init"},
         "model.init_std",
         "model.init is fan_in, which draws each matrix by its own width",
         "set model.init to normal");
  const ScheduleConfig& schedule = config.schedule;
  expect(schedule.decay == Decay::wsd,
         schedule.decay_steps == derived_decay_steps(schedule),
         {"schedule.decay_steps", "schedule.decay"},
         shown("schedule.decay_steps", schedule.decay_steps),
         std::string("schedule.decay is ") + (schedule.decay == Decay::cosine
                                                  ? "cosine, which decays from the warm-up on"
                                                  : "constant"),
         "set schedule.decay to wsd");
  expect(schedule.decay != Decay::constant,
         schedule.min_ratio == defaults.schedule.min_ratio,
         {"schedule.min_ratio", "schedule.decay"},
         "schedule.min_ratio",
         "schedule.decay is constant, and the last learning rate is the first",
         "set schedule.decay to cosine or wsd");
  expect(config.checkpoint.every != 0,
         config.optimizer.rewind_norm == 0,
         {"optimizer.rewind_norm", "checkpoint.every"},
         "optimizer.rewind_norm",
         "checkpoint.every is 0, and without checkpoints there is nothing to go back to",
         "save some");
  expect(config.data.prompt_field.empty(),
         config.data.field == defaults.data.field || config.data.field.empty(),
         {"data.field", "data.prompt_field"},
         "data.field " + quote(config.data.field),
         "data.prompt_field and data.response_field are read in its place",
         "leave those out");
}

}  // namespace memphis
