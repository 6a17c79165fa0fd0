// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/resolve_parallel.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/config/checker.h"
#include "csrc/config/schema.h"
#include "csrc/config/validate.h"
#include "csrc/config/words.h"

namespace memphis {
namespace {

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
    // A stage has a layer at least: beyond them no degree of however many ranks need be tried.
    const std::int64_t most = config_.model.num_layers / num_chunks(config_.parallel);
    return "; use " +
           nearest(config_.parallel.pipeline, std::min(most, job_ranks_), &Degrees::pipeline_fits);
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

// Of the key `key`, whose value is `choice` and cannot be required for the reason `refusal`.
void check_overlap(const std::string& key,
                   OverlapChoice choice,
                   const std::string& refusal,
                   const Checker& checker) {
  checker.expect(choice != OverlapChoice::required || refusal.empty(),
                 {key},
                 key + " is required and " + refusal + ", or set " + key + " to auto");
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
  check_overlap("parallel.overlap_experts",
                parallel.overlap_experts,
                expert_overlap_refusal(config),
                checker);
  check_overlap(
      "parallel.overlap_tensor", parallel.overlap_tensor, tensor_overlap_refusal(config), checker);
}

}  // namespace memphis
