// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/validate.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <initializer_list>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

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

using Paths = std::initializer_list<std::string_view>;

std::string text_of(std::int64_t value) {
  return std::to_string(value);
}

// Three digits: sizes in error texts.
std::string rounded(double value) {
  std::array<char, 16> buffer;
  const auto result = std::to_chars(
      buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::general, 3);
  return {buffer.data(), result.ptr};
}

// "path value"
std::string shown(std::string_view path, std::int64_t value) {
  return std::string(path) + " " + text_of(value);
}

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

class Checker {
 public:
  explicit Checker(const Sources& sources) : sources_(sources) {}

  // `paths`: the keys that are at fault, the one to change first.
  void expect(bool holds, Paths paths, const std::string& message) const {
    if (!holds) {
      throw ConfigError(sources_.place(paths) + ": " + message);
    }
  }

 private:
  const Sources& sources_;
};

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

void resolve_schedule(ScheduleConfig& schedule, const Checker& checker) {
  checker.expect(schedule.warmup_steps < schedule.steps,
                 {"schedule.warmup_steps", "schedule.steps"},
                 shown("schedule.warmup_steps", schedule.warmup_steps) + " is not below " +
                     shown("schedule.steps", schedule.steps) +
                     " (the learning rate would never leave its warm-up); use at most " +
                     text_of(schedule.steps - 1));
  const std::int64_t after_warmup = schedule.steps - schedule.warmup_steps;
  if (schedule.decay_steps == 0) {
    constexpr std::int64_t kDecayPart = 5;
    schedule.decay_steps = std::clamp<std::int64_t>(schedule.steps / kDecayPart, 1, after_warmup);
  }
  checker.expect(schedule.decay != Decay::wsd || schedule.decay_steps <= after_warmup,
                 {"schedule.decay_steps", "schedule.steps"},
                 shown("schedule.decay_steps", schedule.decay_steps) + " exceeds the " +
                     text_of(after_warmup) +
                     " steps after the warm-up (the final decay starts when that is over); use at "
                     "most " +
                     text_of(after_warmup));
}

// What a degree of the mesh has to divide: advice that heeds one number alone is refused next. All
// but the pipeline's cut the ranks that it leaves to a stage.
class Degrees {
 public:
  Degrees(const Config& config, std::int64_t job_ranks)
      : config_(config),
        job_ranks_(job_ranks),
        num_ranks_(std::max<std::int64_t>(job_ranks / config.parallel.pipeline, 1)) {}

  std::int64_t job_ranks() const { return job_ranks_; }
  std::int64_t num_ranks() const { return num_ranks_; }  // of a stage

  // "the 8 ranks of this job"
  std::string ranks_of_job() const {
    return job_ranks_ == 1 ? "the 1 rank of this job"
                           : "the " + text_of(job_ranks_) + " ranks of this job";
  }
  // "the 2 ranks that parallel.pipeline 4 leaves of the 8 of this job"
  std::string ranks_of_stage() const {
    const std::int64_t pipeline = config_.parallel.pipeline;
    return pipeline == 1 ? ranks_of_job()
                         : "the " + text_of(num_ranks_) + (num_ranks_ == 1 ? " rank" : " ranks") +
                               " that " + shown("parallel.pipeline", pipeline) + " leaves of the " +
                               text_of(job_ranks_) + " of this job";
  }

  bool pipeline_fits(std::int64_t degree) const {
    const ParallelConfig& parallel = config_.parallel;
    return job_ranks_ % degree == 0 && degree * num_chunks(parallel) <= config_.model.num_layers &&
           job_ranks_ / degree % stage_ranks() == 0;
  }

  bool tensor_fits(std::int64_t degree) const {
    const ModelConfig& model = config_.model;
    return num_ranks_ % degree == 0 && model.num_heads % degree == 0 && kv_heads_fit(degree) &&
           config_.batch.sequence_length % (degree * config_.parallel.context) == 0 &&
           model.dense_ffn_dim % degree == 0;
  }
  bool kv_heads_fit(std::int64_t tensor) const {
    const std::int64_t num_kv_heads = config_.model.num_kv_heads;
    return num_kv_heads % tensor == 0 || tensor % num_kv_heads == 0;
  }
  bool context_fits(std::int64_t degree) const {
    const std::int64_t tensor = config_.parallel.tensor;
    const std::int64_t length = config_.batch.sequence_length;
    return num_ranks_ / tensor % degree == 0 && (degree == 1 || length % (2 * degree) == 0) &&
           length % (degree * tensor) == 0;
  }
  bool expert_fits(std::int64_t degree) const {
    return num_ranks_ % degree == 0 && config_.model.num_experts % degree == 0;
  }
  bool expert_tensor_fits(std::int64_t degree) const {
    return num_ranks_ / config_.parallel.expert % degree == 0 &&
           config_.model.ffn_dim % degree == 0;
  }

  // "; use A or B" for the nearest degrees on both sides that fit. 1 always does.
  std::string pipeline_advice() const {
    if (job_ranks_ == 1) {
      return more_ranks();
    }
    return "; use " + nearest(config_.parallel.pipeline, job_ranks_, &Degrees::pipeline_fits);
  }
  std::string tensor_advice() const {
    return advice(config_.parallel.tensor, config_.model.num_heads, &Degrees::tensor_fits);
  }
  std::string context_advice() const {
    return advice(
        config_.parallel.context, config_.batch.sequence_length / 2, &Degrees::context_fits);
  }
  std::string expert_advice() const {
    return advice(config_.parallel.expert, config_.model.num_experts, &Degrees::expert_fits);
  }
  std::string expert_tensor_advice() const {
    return advice(
        config_.parallel.expert_tensor, config_.model.ffn_dim, &Degrees::expert_tensor_fits);
  }

 private:
  std::string advice(std::int64_t wanted,
                     std::int64_t largest,
                     bool (Degrees::*fits)(std::int64_t) const) const {
    return num_ranks_ == 1 ? more_ranks()
                           : "; use " + nearest(wanted, std::min(largest, num_ranks_), fits);
  }
  std::string nearest(std::int64_t wanted,
                      std::int64_t last,
                      bool (Degrees::*fits)(std::int64_t) const) const {
    std::int64_t below = std::min(wanted - 1, last);
    while (below > 1 && !(this->*fits)(below)) {
      --below;
    }
    std::int64_t above = wanted + 1;
    while (above <= last && !(this->*fits)(above)) {
      ++above;
    }
    return text_of(below) + (above <= last ? " or " + text_of(above) : std::string());
  }
  // The least ranks of a stage that both folds of it cut.
  std::int64_t stage_ranks() const {
    const ParallelConfig& parallel = config_.parallel;
    return std::lcm(parallel.tensor * parallel.context, parallel.expert * parallel.expert_tensor);
  }
  std::string more_ranks() const {
    const std::string wanted = text_of(config_.parallel.pipeline * stage_ranks());
    return "; start the job with " + wanted + " ranks, as in mpirun -n " + wanted + ", or use 1";
  }

  const Config& config_;
  std::int64_t job_ranks_;
  std::int64_t num_ranks_;  // of a stage
};

// The degrees fold the ranks: pipeline x data x context x tensor, and the same with expert_data x
// expert x expert_tensor for the ranks of a stage.
void resolve_mesh(ParallelConfig& parallel, const Degrees& degrees, const Checker& checker) {
  checker.expect(degrees.job_ranks() % parallel.pipeline == 0,
                 {"parallel.pipeline"},
                 shown("parallel.pipeline", parallel.pipeline) + " does not divide " +
                     degrees.ranks_of_job() +
                     " (the layers lie on so many parts of the ranks, of one size)" +
                     degrees.pipeline_advice());
  const std::int64_t num_ranks = degrees.num_ranks();
  checker.expect(num_ranks % parallel.tensor == 0,
                 {"parallel.tensor", "parallel.pipeline"},
                 shown("parallel.tensor", parallel.tensor) + " does not divide " +
                     degrees.ranks_of_stage() +
                     " (a layer is cut over so many neighbouring ranks)" + degrees.tensor_advice());
  const std::int64_t sequences = num_ranks / parallel.tensor;
  checker.expect(sequences % parallel.context == 0,
                 {"parallel.context", "parallel.tensor", "parallel.pipeline"},
                 shown("parallel.context", parallel.context) + " times " +
                     shown("parallel.tensor", parallel.tensor) + " does not divide " +
                     degrees.ranks_of_stage() + " (so many share out the tokens of a sequence)" +
                     degrees.context_advice());
  const std::int64_t data = sequences / parallel.context;
  const bool is_pipeline = parallel.pipeline > 1;
  checker.expect(
      parallel.data == 0 || parallel.data == data,
      {"parallel.data", "parallel.tensor", "parallel.pipeline"},
      shown("parallel.data", parallel.data) + " times " +
          shown("parallel.tensor", parallel.tensor) +
          (parallel.context > 1 ? " times " + shown("parallel.context", parallel.context)
                                : std::string()) +
          (is_pipeline ? " times " + shown("parallel.pipeline", parallel.pipeline)
                       : std::string()) +
          " is not " + degrees.ranks_of_job() + " (every rank has a place); start the job with " +
          text_of(parallel.data * parallel.tensor * parallel.context * parallel.pipeline) +
          " ranks, or use " + text_of(data));
  parallel.data = data;
  checker.expect(num_ranks % parallel.expert == 0,
                 {"parallel.expert", "parallel.pipeline"},
                 shown("parallel.expert", parallel.expert) + " does not divide " +
                     degrees.ranks_of_stage() + " (the experts of a layer lie on so many ranks)" +
                     degrees.expert_advice());
  const std::int64_t left = num_ranks / parallel.expert;
  checker.expect(left % parallel.expert_tensor == 0,
                 {"parallel.expert_tensor", "parallel.expert", "parallel.pipeline"},
                 shown("parallel.expert_tensor", parallel.expert_tensor) + " times " +
                     shown("parallel.expert", parallel.expert) + " does not divide " +
                     degrees.ranks_of_stage() +
                     " (an expert's width is cut over so many neighbouring ranks)" +
                     degrees.expert_tensor_advice());
}

// `degree` cuts `number` into equal pieces.
void check_cut(std::string_view degree_path,
               std::int64_t degree,
               std::string_view number_path,
               std::int64_t number,
               const std::string& why,
               const std::string& advice,
               const Checker& checker) {
  checker.expect(number % degree == 0,
                 {degree_path, number_path},
                 shown(degree_path, degree) + " does not divide " + shown(number_path, number) +
                     " (" + why + ")" + advice);
}

// A model of `num_layers` layers is cut into so many stages a rank.
void resolve_stages(ParallelConfig& parallel, std::int64_t num_layers, const Checker& checker) {
  const ScheduleRule& rule = rule_of(parallel.schedule);
  const auto takes = [](const ScheduleRule& each, std::int64_t chunks) {
    return chunks == each.num_chunks || (chunks > each.num_chunks && each.takes_more);
  };
  parallel.chunks = num_chunks(parallel);
  std::vector<std::string_view> others;
  for (const ScheduleRule& other : kScheduleRules) {
    if (takes(other, parallel.chunks)) {
      others.push_back(other.name);
    }
  }
  checker.expect(takes(rule, parallel.chunks),
                 {"parallel.chunks", "parallel.schedule"},
                 shown("parallel.chunks", parallel.chunks) +
                     " does not go with parallel.schedule " + std::string(rule.name) + " (" +
                     std::string(rule.why) + "); use " + text_of(rule.num_chunks) +
                     (rule.takes_more ? " or more" : "") + ", or parallel.schedule " +
                     join_words(others, "or"));

  const std::int64_t num_stages = parallel.pipeline * parallel.chunks;
  const std::string stages = "the " + text_of(num_stages) +
                             (num_stages == 1 ? " stage of " : " stages of ") +
                             shown("parallel.pipeline", parallel.pipeline) + " times " +
                             shown("parallel.chunks", parallel.chunks);
  checker.expect(num_stages == 1 || parallel.zero < 2,
                 {"parallel.zero", "parallel.pipeline", "parallel.chunks"},
                 shown("parallel.zero", parallel.zero) + " does not go with " + stages +
                     " (gradients would be reduced" +
                     (parallel.zero > 2 ? ", and weights gathered," : "") +
                     " once a micro-batch, with as many times the messages); use at most 1");
  if (parallel.stages.empty()) {
    checker.expect(
        num_stages <= num_layers,
        {"parallel.pipeline", "parallel.chunks", "parallel.schedule", "model.num_layers"},
        shown("model.num_layers", num_layers) + " is less than " + stages +
            " (each has a layer at least, unless parallel.stages gives it 0); use at most " +
            text_of(num_layers) + " stages, or write parallel.stages");
    return;
  }
  const auto given = static_cast<std::int64_t>(parallel.stages.size());
  checker.expect(given == num_stages,
                 {"parallel.stages", "parallel.pipeline", "parallel.chunks"},
                 "parallel.stages has " + text_of(given) + (given == 1 ? " number" : " numbers") +
                     " for " + stages +
                     " (each says how many layers a stage has, in the order of the model); " +
                     (given < num_stages ? "add " + text_of(num_stages - given)
                                         : "take " + text_of(given - num_stages) + " away"));
  const std::int64_t sum =
      std::accumulate(parallel.stages.begin(), parallel.stages.end(), std::int64_t{0});
  const std::int64_t missing = num_layers - sum;
  const std::string first = text_of(std::min(sum, num_layers));
  const std::string last = text_of(std::max(sum, num_layers) - 1);
  const std::string layers =
      first == last ? "layer " + first + " is" : "layers " + first + " to " + last + " are";
  checker.expect(missing == 0,
                 {"parallel.stages", "model.num_layers"},
                 "parallel.stages has " + text_of(sum) + (sum == 1 ? " layer" : " layers") +
                     " in all and " + shown("model.num_layers", num_layers) + " (" + layers +
                     (missing > 0 ? " in no stage" : " not of the model") +
                     ", and each of the model's is in one stage); " +
                     (missing > 0 ? "add " + text_of(missing) + " to the numbers"
                                  : "take " + text_of(-missing) + " from the numbers"));
}

// Of a sequence, ranks along `context` have tokens that those along `tensor` share out once more.
void check_context(const Config& config, const Degrees& degrees, const Checker& checker) {
  const ParallelConfig& parallel = config.parallel;
  const std::int64_t context = parallel.context;
  const std::int64_t length = config.batch.sequence_length;
  checker.expect(context == 1 || length % (2 * context) == 0,
                 {"parallel.context", "batch.sequence_length"},
                 shown("batch.sequence_length", length) + " is not a multiple of twice " +
                     shown("parallel.context", context) +
                     " (a rank has a piece from the front of a sequence and one from its back)" +
                     degrees.context_advice());
  checker.expect(length % (context * parallel.tensor) == 0,
                 {"parallel.tensor", "parallel.context", "batch.sequence_length"},
                 (context == 1 ? shown("parallel.tensor", parallel.tensor)
                               : shown("parallel.tensor", parallel.tensor) + " times " +
                                     shown("parallel.context", context)) +
                     " does not divide " + shown("batch.sequence_length", length) +
                     " (each sequence is cut into so many pieces for its norms and experts)" +
                     degrees.tensor_advice());
  const std::int64_t tokens = config.batch.micro_batch * length / context;
  constexpr std::int64_t kTokensMultiple = 16;
  checker.expect(
      context == 1 || parallel.context_exchange != ContextExchange::ring ||
          tokens % kTokensMultiple == 0,
      {"parallel.context_exchange", "parallel.context", "batch.micro_batch"},
      "parallel.context_exchange is ring and a rank has " + text_of(tokens) +
          " tokens of a micro-batch (what belongs to each rank's keys starts aligned, a byte a "
          "token too); use gather, or a batch.micro_batch with which they are a multiple of 16");
  if (parallel.context_exchange != ContextExchange::all_to_all) {
    return;
  }
  const std::int64_t num_kv_heads = config.model.num_kv_heads;
  checker.expect(num_kv_heads % (context * parallel.tensor) == 0,
                 {"parallel.context_exchange", "parallel.context", "model.num_kv_heads"},
                 "parallel.context_exchange is all_to_all and " +
                     shown("parallel.context", context) + " times " +
                     shown("parallel.tensor", parallel.tensor) + " does not divide " +
                     shown("model.num_kv_heads", num_kv_heads) +
                     " (each rank takes whole key/value heads); use gather or ring");
  constexpr std::int64_t kGpusOfMachine = 8;
  checker.expect(context * parallel.tensor <= kGpusOfMachine,
                 {"parallel.context_exchange", "parallel.context"},
                 "parallel.context_exchange is all_to_all and " +
                     shown("parallel.context", context) + " times " +
                     shown("parallel.tensor", parallel.tensor) + " exceeds " +
                     text_of(kGpusOfMachine) +
                     " (every rank sends to every other, which is for the links of one machine); "
                     "use gather or ring");
}

void resolve_parallel(Config& config, std::int64_t num_ranks, const Checker& checker) {
  ParallelConfig& parallel = config.parallel;
  const ModelConfig& model = config.model;
  const Degrees degrees(config, num_ranks);
  resolve_mesh(parallel, degrees, checker);
  resolve_stages(parallel, model.num_layers, checker);
  const std::int64_t tensor = parallel.tensor;
  check_cut("parallel.expert",
            parallel.expert,
            "model.num_experts",
            model.num_experts,
            "each rank has equally many experts",
            degrees.expert_advice(),
            checker);
  check_cut("parallel.expert_tensor",
            parallel.expert_tensor,
            "model.ffn_dim",
            model.ffn_dim,
            "an expert's width is cut into equal pieces",
            degrees.expert_tensor_advice(),
            checker);
  check_cut("parallel.tensor",
            tensor,
            "model.num_heads",
            model.num_heads,
            "each rank has equally many query heads",
            degrees.tensor_advice(),
            checker);
  checker.expect(degrees.kv_heads_fit(tensor),
                 {"parallel.tensor", "model.num_kv_heads"},
                 shown("parallel.tensor", tensor) + " and " +
                     shown("model.num_kv_heads", model.num_kv_heads) +
                     " do not divide one another (a rank has some key/value heads, or ranks share "
                     "one)" +
                     degrees.tensor_advice());
  check_context(config, degrees, checker);
  check_cut("parallel.tensor",
            tensor,
            "model.dense_ffn_dim",
            model.dense_ffn_dim,
            "the dense FFN's width is cut into equal pieces",
            degrees.tensor_advice(),
            checker);
  checker.expect(
      model.vocab_size >= tensor,
      {"parallel.tensor", "model.vocab_size"},
      shown("parallel.tensor", tensor) + " exceeds " + shown("model.vocab_size", model.vocab_size) +
          " (each rank has a part of the vocabulary); use at most " + text_of(model.vocab_size));
  checker.expect(parallel.expert_buffer == 0 || parallel.expert_buffer >= 1,
                 {"parallel.expert_buffer"},
                 "parallel.expert_buffer is " + rounded(parallel.expert_buffer) +
                     " (a rank's experts receive an equal share of the rows on average); use at "
                     "least 1, or 0 for room in every case");
  const std::int64_t samples = config.batch.micro_batch * parallel.data;
  const std::int64_t below = config.batch.global_batch / samples * samples;
  // What each rank has may do in smaller pieces.
  const bool shared_out = config.batch.global_batch % parallel.data == 0;
  std::int64_t micro_batch = config.batch.micro_batch;
  while (shared_out && config.batch.global_batch / parallel.data % micro_batch != 0) {
    --micro_batch;
  }
  checker.expect(
      below == config.batch.global_batch,
      {"batch.global_batch", "batch.micro_batch", "parallel.data"},
      shown("batch.global_batch", config.batch.global_batch) + " is not a multiple of the " +
          text_of(samples) + " samples that " + shown("parallel.data", parallel.data) +
          " ranks take in micro-batches of " + text_of(config.batch.micro_batch) +
          " (every rank takes equally many); use " +
          (below > 0 ? text_of(below) + " or " : std::string()) + text_of(below + samples) +
          (shared_out ? ", or batch.micro_batch " + text_of(micro_batch) : std::string()));
}

// Of the key `key`, whose value is `choice` and cannot be required for the reason `refusal`.
void check_overlap(const std::string& key,
                   OverlapChoice choice,
                   const std::string& refusal,
                   const Checker& checker) {
  checker.expect(choice != OverlapChoice::required || refusal.empty(),
                 {key},
                 key + " is required and " + refusal + ", or set " + key + " to auto");
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

std::string expert_overlap_refusal(const Config& config) {
  const ParallelConfig& parallel = config.parallel;
  if (parallel.expert * parallel.expert_tensor == 1) {
    return "parallel.expert is 1 (every rank has all experts, and no rows travel); use 2 or more";
  }
  const std::int64_t micro_batches = config.batch.global_batch /
                                     std::max<std::int64_t>(parallel.data, 1) /
                                     config.batch.micro_batch;
  if (micro_batches < 2) {
    return "a step has 1 micro-batch on each rank (there is no other whose work could go on "
           "meanwhile); " +
           (config.batch.micro_batch > 1
                ? "lower " + shown("batch.micro_batch", config.batch.micro_batch) + " or raise "
                : std::string("raise ")) +
           shown("batch.global_batch", config.batch.global_batch);
  }
  if (parallel.schedule == ScheduleKind::zbv) {
    return "parallel.schedule is zbv (where its V turns, a backward pass follows the forward pass "
           "of the same micro-batch, and no other fits between them); use interleaved";
  }
  if (parallel.zero > 2) {
    return "parallel.zero is 3 (weights of two layers are whole at a time, and two passes need "
           "those "
           "of four); use at most 2";
  }
  return "";
}

std::string tensor_overlap_refusal(const Config& config) {
  if (config.parallel.tensor == 1) {
    return "parallel.tensor is 1 (every rank has all of a product, and nothing is gathered or "
           "summed beside it); use 2 or more";
  }
  return "";
}

void resolve(Config& config, const Sources& sources, std::int64_t num_ranks) {
  const Checker checker(sources);
  check_required(config, checker);
  resolve_model(config.model, config.batch, config.data.tokenizer == "byte", checker);
  check_batch(config.batch, checker);
  check_sizes(config, checker);
  resolve_schedule(config.schedule, checker);
  resolve_parallel(config, num_ranks, checker);
  check_overlap("parallel.overlap_experts",
                config.parallel.overlap_experts,
                expert_overlap_refusal(config),
                checker);
  check_overlap("parallel.overlap_tensor",
                config.parallel.overlap_tensor,
                tensor_overlap_refusal(config),
                checker);
  check_run(config, checker);
  check_memory(config, checker);
  check_data(config, checker);
}

}  // namespace memphis
