// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/core/device.h"
#include "csrc/core/dtype.h"

// The schema of a config file: YAML mirrors these structs, section by section, key by key. A config
// that load_config returned is resolved: whatever may be derived has been, and every value is in
// range.
namespace memphis {

// Weights at step 0. Norm gains are 1 in either.
//   fan_in  every matrix N(0, 1/in), the embedding N(0, 1/d_model)
//   normal  every matrix and the embedding N(0, init_std^2)
enum class InitScheme : std::uint8_t { fan_in, normal };

struct ModelConfig {
  std::string preset;  // grok-1, grok-2, or empty; given keys override the preset's
  std::int64_t vocab_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t d_model = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;  // derived: num_heads
  std::int64_t head_dim = 0;      // derived: d_model / num_heads
  std::int64_t ffn_dim = 0;       // of one expert
  std::int64_t num_experts = 0;
  std::int64_t experts_per_token = 2;
  std::int64_t dense_ffn_dim = 0;   // of the dense FFN beside the experts (Grok-2); 0: none
  double embedding_multiplier = 0;  // derived: sqrt(d_model)
  double output_multiplier = 1.0;
  double attention_multiplier = 0;             // derived: 1 / sqrt(head_dim)
  double attention_cap = 30.0;                 // 0: none
  double router_cap = 0.0;                     // 0: none
  double final_cap = 0.0;                      // 0: none
  std::int64_t attention_temperature_len = 0;  // positions; 0: none
  double rope_theta = 10000.0;
  bool tie_embeddings = true;
  double norm_eps = 1e-5;
  std::int64_t pad_id = 0;               // masked as a key and as a target; -1: none
  std::int64_t max_sequence_length = 0;  // written to config.json; derived: batch.sequence_length
  InitScheme init = InitScheme::fan_in;
  double init_std = 0.02;         // of InitScheme::normal
  double router_init_std = 0.02;  // of the router in either scheme

  bool operator==(const ModelConfig&) const = default;
};

enum class DeviceChoice : std::uint8_t { automatic, cpu, cuda };       // auto | cpu | cuda
enum class Resume : std::uint8_t { automatic, required, never };       // auto | required | never
enum class GraphChoice : std::uint8_t { automatic, required, never };  // auto | required | never
enum class BackgroundChoice : std::uint8_t {
  automatic,
  required,
  never
};                                                                       // auto | required | never
enum class OverlapChoice : std::uint8_t { automatic, required, never };  // auto | required | never

inline constexpr std::int64_t kAutoTimeLimit = -1;

struct RunConfig {
  std::string dir = "runs/default";
  DeviceChoice device = DeviceChoice::automatic;
  std::int64_t seed = 1;
  Resume resume = Resume::automatic;
  // A model folder whose weights the run begins with; empty: they are drawn.
  std::string init_from = {};
  std::int64_t export_every = 0;  // steps between model folders in run.dir/export; 0: none
  // A rank is lost that nothing is heard of for so long, and a collective hangs that some ranks do
  // not come to for so long, though they live; 0: never, for a debugger, which stops ranks.
  double lost_seconds = 10;
  double hang_seconds = 600;
  // A GPU's step is launched as graphs; auto: where it can be.
  GraphChoice graph = GraphChoice::automatic;
  // Seconds from the start of the process until all is to be saved and the run stopped; 0: none;
  // kAutoTimeLimit: where the scheduler says when it ends the job.
  std::int64_t time_limit = kAutoTimeLimit;
  double failure_hours = 50700;     // of a rank's work, between two failures that end the job
  std::int64_t verify_every = 100;  // steps between comparisons of what ranks hold; 0: none
  std::int64_t recompute_check_every = 0;  // steps between micro-batches computed twice; 0: none

  bool operator==(const RunConfig&) const = default;
};

// In which order pipeline ranks work; see csrc/plan/schedule.h for what each does and costs.
enum class ScheduleKind : std::uint8_t { one_f_one_b, interleaved, zb_h1, zbv };

// What a schedule is called, and how many stages of the model a rank holds under it.
struct ScheduleRule {
  ScheduleKind kind;
  std::string_view name;
  std::int64_t num_chunks;  // that ParallelConfig::chunks 0 stands for
  bool takes_more;          // than num_chunks
  std::string_view why;     // there is no other number
};
// In the order of the enumerators.
inline constexpr ScheduleRule kScheduleRules[] = {
    {ScheduleKind::one_f_one_b,
     "1f1b",
     1,
     false,
     "a rank holds one run of layers, and its warm-up is counted for one"},
    {ScheduleKind::interleaved,
     "interleaved",
     2,
     true,
     "the chunks of a rank take turns, and with one of them this is 1f1b"},
    {ScheduleKind::zb_h1,
     "zb-h1",
     1,
     false,
     "a rank holds one run of layers, and its warm-up is counted for one"},
    {ScheduleKind::zbv, "zbv", 2, false, "the stages go down the ranks once and up again once"}};
constexpr const ScheduleRule& rule_of(ScheduleKind kind) {
  return kScheduleRules[static_cast<std::size_t>(kind)];
}

// Which tokens of a sequence ranks along `context` have, csrc/plan/context_order.h; auto: what
// balances their work.
enum class ContextOrderKind : std::uint8_t { automatic, zigzag, blocks };
// How they come to each other's keys and values, csrc/model/context_exchange.h; auto: as the plan
// finds best.
enum class ContextExchange : std::uint8_t { automatic, gather, ring, all_to_all };

struct ParallelConfig {
  std::int64_t pipeline = 1;
  ScheduleKind schedule = ScheduleKind::one_f_one_b;
  std::int64_t chunks = 0;  // stages a rank; derived: what the schedule is made for
  // Layers of each of the pipeline x chunks stages, in the order of the model; empty: evenly.
  std::vector<std::int64_t> stages = {};
  std::int64_t data = 0;     // derived: what the other degrees leave of the ranks
  std::int64_t context = 1;  // ranks that share out the tokens of a sequence
  ContextOrderKind context_order = ContextOrderKind::automatic;
  ContextExchange context_exchange = ContextExchange::automatic;
  std::int64_t expert = 1;
  std::int64_t tensor = 1;
  std::int64_t expert_tensor = 1;
  // What each of the ranks that hold the same parameters keeps a piece of: 0 nothing, 1 the
  // optimizer's state, 2 the accumulated gradients too, 3 the weights of layers too.
  std::int64_t zero = 1;
  // Gradients are reduced, and weights gathered, in buckets of whole tensors that hold at least so
  // much in f32: while the backward pass goes on, and the next forward pass.
  double bucket_mib = 32;
  bool sequence_parallel = true;
  // Rows that a rank's experts can receive in a micro-batch, over an equal share; 0: room for every
  // case.
  double expert_buffer = 0;
  // Whether a micro-batch's rows travel to their experts, and back, while another one is at work.
  OverlapChoice overlap_experts = OverlapChoice::automatic;
  // Whether what tensor ranks gather and sum travels beside their products.
  OverlapChoice overlap_tensor = OverlapChoice::automatic;

  bool operator==(const ParallelConfig&) const = default;
};

// Stages a rank, also where `parallel` is not resolved.
constexpr std::int64_t num_chunks(const ParallelConfig& parallel) {
  return parallel.chunks != 0 ? parallel.chunks : rule_of(parallel.schedule).num_chunks;
}

// Groups of ops whose results the backward pass of a layer computes again, instead of finding them
// kept. The same ops on the same operands: the same bits.
struct RecomputeGroups {
  bool norm = false;       // inputs of both branches, from the residual stream
  bool attention = false;  // its output before the projection, from queries, keys and values
  bool experts = false;    // up-projections of experts and dense FFN, from their rows
  bool geglu = false;      // their activations, from the up-projections
  bool block = false;      // everything but the layer's input and what its experts made of it

  bool any() const { return norm || attention || experts || geglu || block; }
  bool operator==(const RecomputeGroups&) const = default;
};

// Each by its name; the last has the others in it.
struct RecomputeGroup {
  std::string_view name;
  bool RecomputeGroups::*member;
};
inline constexpr RecomputeGroup kRecomputeGroups[] = {{"norm", &RecomputeGroups::norm},
                                                      {"attention", &RecomputeGroups::attention},
                                                      {"experts", &RecomputeGroups::experts},
                                                      {"geglu", &RecomputeGroups::geglu},
                                                      {"block", &RecomputeGroups::block}};

struct MemoryConfig {
  bool recompute_auto = true;         // the least that fits
  RecomputeGroups recompute = {};     // where that is false
  std::int64_t recompute_layers = 0;  // of so many, the first ones; 0: of all
  std::int64_t head_rows = 0;         // tokens whose logits are there at one time; 0: see dims.h
  double budget_gib = 0;              // what a rank may take on its device; 0: what is free there

  bool operator==(const MemoryConfig&) const = default;
};

// What an entry of data.train or data.validation says beside its path.
struct DataEntry {
  double weight = 0;  // of a mixture's samples, over the sum of all; 0: not said
  std::string name;   // in the log and in metrics; derived: from the path

  bool operator==(const DataEntry&) const = default;
};

struct DataConfig {
  std::vector<std::string> train;  // files, directories and globs; empty: memphis's own sources
  std::vector<std::string> validation;     // the same; empty: the held-out end of train
  double held_out = 0.1;                   // fraction of train, where validation is empty
  std::string tokenizer = "byte";          // byte, none, or a path
  std::vector<std::string> evaluate = {};  // files of multiple-choice questions, jsonl
  // One for each of the paths where they are maps: the sources of a mixture, and the sets that are
  // validated on one by one. Empty: the paths are one text.
  std::vector<DataEntry> mixture = {};
  std::vector<DataEntry> validation_sets = {};
  std::string tokenizer_pattern = {};  // of a tiktoken file: a name or a regular expression
  std::string field = "text";          // of a JSON line
  std::string prompt_field = {};       // in place of field: read, and not a target
  std::string response_field = {};     // behind it, the targets
  bool document_boundaries = true;     // attention and targets end with a document

  bool operator==(const DataConfig&) const = default;
};

// What an entry is called: as it says, or as its path's last part begins.
std::string name_of_entry(const std::string& path, const DataEntry& entry);

struct BatchConfig {
  std::int64_t sequence_length = 256;  // tokens
  std::int64_t micro_batch = 4;        // sequences
  std::int64_t global_batch = 16;      // sequences

  bool operator==(const BatchConfig&) const = default;
};

struct OptimizerConfig {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  // 0: none
  // Steps in a row whose gradient norm is not finite and that are left out; 0: the first ends the run.
  std::int64_t max_skipped = 0;
  // Of a gradient, before clipping: above it the run goes back to its last checkpoint and passes over
  // the batch; 0: never.
  double rewind_norm = 0;
  std::int64_t max_rewinds = 3;  // to one checkpoint

  bool operator==(const OptimizerConfig&) const = default;
};

enum class Decay : std::uint8_t { cosine, wsd, constant };

struct ScheduleConfig {
  std::int64_t steps = 0;
  std::int64_t warmup_steps = 0;
  Decay decay = Decay::cosine;
  std::int64_t decay_steps = 0;  // wsd: length of the final linear decay; derived: steps / 5
  double min_ratio = 0.1;        // final learning rate over the peak

  bool operator==(const ScheduleConfig&) const = default;
};

struct LossConfig {
  double balance = 1e-2;   // per layer, summed over layers
  double router_z = 1e-3;  // per layer, summed over layers

  bool operator==(const LossConfig&) const = default;
};

// auto: bf16 on cuda, f32 on cpu. f64 is of the CPU: it tells rounding from error.
enum class Precision : std::uint8_t { automatic, bf16, f32, f64 };

struct PrecisionConfig {
  Precision compute = Precision::automatic;

  bool operator==(const PrecisionConfig&) const = default;
};

// Of checkpoint.every: as often as what a save takes and how often the job fails make best.
inline constexpr std::int64_t kAutoInterval = -1;

struct CheckpointConfig {
  // Steps; the last step is always saved; 0: only the last; or kAutoInterval.
  std::int64_t every = 200;
  std::int64_t keep = 3;  // newest ones
  // Saved while training goes on, from a copy in host memory; auto: where that has room.
  BackgroundChoice background = BackgroundChoice::automatic;
  std::int64_t max_failures = 2;  // saves in a row that fail and do not end the run
  // Steps: the first one from each multiple on stays for ever; 0: none.
  std::int64_t keep_every = 0;

  bool operator==(const CheckpointConfig&) const = default;
};

struct MetricsConfig {
  std::int64_t every = 1;             // steps between progress lines
  std::int64_t validate_every = 200;  // steps; 0: only at the end
  std::int64_t validate_batches = 0;  // micro-batches; 0: the whole validation set
  std::int64_t evaluate_every = 0;    // steps, of data.evaluate; 0: only at the end
  std::int64_t sample_every = 500;    // steps; 0: never
  std::int64_t sample_tokens = 200;
  std::string sample_prompt = "\n";
  double sample_temperature = 0.8;  // 0: greedy
  bool trace = false;               // what each rank did when, to run.dir/trace
  bool tensorboard = false;         // event files, to run.dir/tensorboard

  bool operator==(const MetricsConfig&) const = default;
};

struct Config {
  ModelConfig model;
  RunConfig run;
  ParallelConfig parallel;
  MemoryConfig memory;
  DataConfig data;
  BatchConfig batch;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  LossConfig loss;
  PrecisionConfig precision;
  CheckpointConfig checkpoint;
  MetricsConfig metrics;

  bool operator==(const Config&) const = default;
};

// The device and dtype that the config's `auto`s mean here. PreflightError if an explicit device is
// absent.
Device resolve_device(DeviceChoice choice);
DType resolve_compute(Precision precision, Device device);

}  // namespace memphis
