// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/resume_rules.h"

#include <algorithm>
#include <array>
#include <map>

#include "csrc/config/schema.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr auto kRefused = OnResume::refused;
constexpr auto kSaid = OnResume::said;
constexpr auto kFree = OnResume::free;

constexpr std::string_view kShape = "the tensors of the checkpoint have other names or shapes";
constexpr std::string_view kHeads =
    "the tensors of the checkpoint have other shapes, or are cut into other heads";
constexpr std::string_view kArithmetic = "the weights were trained under other arithmetic";
constexpr std::string_view kDrawn = "weights are drawn once, at step 0";
constexpr std::string_view kHeldOut =
    "text that was trained on would be held out, and losses would compare with no earlier one";
constexpr std::string_view kTokens = "tokens would stand for other text";
constexpr std::string_view kTargets = "losses are of other targets";
constexpr std::string_view kCompute =
    "weights, master weights and moments are kept in other types; what counts is what `auto` means "
    "on this machine";
constexpr std::string_view kRounding =
    "the same steps up to rounding: sums are taken in another order";
constexpr std::string_view kRate = "the learning rates of the last step and of the next are named";
constexpr std::string_view kMoments =
    "the moments were averaged with the old value; how large the first updates are is named";
constexpr std::string_view kOptimizer = "it holds from the next step on";
constexpr std::string_view kLoss =
    "the objective changes from the next step on; the loss of tokens stays comparable";
constexpr std::string_view kReports = "it changes what is shown and kept, not what is trained";

constexpr std::array kRules = {
    ResumeRule{"model.preset", kFree, "the keys that it stands for are compared one by one"},
    ResumeRule{"model.vocab_size", kRefused, kShape},
    ResumeRule{"model.num_layers", kRefused, kShape},
    ResumeRule{"model.d_model", kRefused, kShape},
    ResumeRule{"model.num_heads", kRefused, kHeads},
    ResumeRule{"model.num_kv_heads", kRefused, kHeads},
    ResumeRule{"model.head_dim", kRefused, kHeads},
    ResumeRule{"model.ffn_dim", kRefused, kShape},
    ResumeRule{"model.num_experts", kRefused, kShape},
    ResumeRule{"model.experts_per_token", kRefused, kArithmetic},
    ResumeRule{"model.dense_ffn_dim", kRefused, kShape},
    ResumeRule{"model.embedding_multiplier", kRefused, kArithmetic},
    ResumeRule{"model.output_multiplier", kRefused, kArithmetic},
    ResumeRule{"model.attention_multiplier", kRefused, kArithmetic},
    ResumeRule{"model.attention_cap", kRefused, kArithmetic},
    ResumeRule{"model.router_cap", kRefused, kArithmetic},
    ResumeRule{"model.final_cap", kRefused, kArithmetic},
    ResumeRule{"model.attention_temperature_len", kRefused, kArithmetic},
    ResumeRule{"model.rope_theta", kRefused, kArithmetic},
    ResumeRule{"model.tie_embeddings", kRefused, kShape},
    ResumeRule{"model.norm_eps", kRefused, kArithmetic},
    ResumeRule{"model.pad_id", kRefused, kArithmetic},
    ResumeRule{"model.max_sequence_length",
               kSaid,
               "the config.json of later checkpoints names it; training does not depend on it"},
    ResumeRule{"model.init", kRefused, kDrawn},
    ResumeRule{"model.init_std", kRefused, kDrawn},
    ResumeRule{"model.router_init_std", kRefused, kDrawn},

    ResumeRule{"run.dir", kFree, "a run directory may be moved or copied"},
    ResumeRule{"run.device", kSaid, kRounding},
    ResumeRule{"run.seed", kSaid, "the order of samples changes from here on"},
    ResumeRule{"run.resume", kFree, "it says whether there is a resume"},
    ResumeRule{"run.init_from",
               kFree,
               "the checkpoint wins, and the log says so: weights come from a folder at step 0 "
               "alone"},
    ResumeRule{"run.export_every", kFree, kReports},
    ResumeRule{"run.lost_seconds", kFree, "the patience of ranks with each other"},
    ResumeRule{"run.hang_seconds", kFree, "the patience of ranks with each other"},
    ResumeRule{"run.graph", kFree, "the same kernels, launched together or one by one"},
    ResumeRule{"run.time_limit", kFree, kReports},
    ResumeRule{"run.failure_hours", kFree, kReports},
    ResumeRule{"run.verify_every", kFree, kReports},
    ResumeRule{"run.recompute_check_every", kFree, kReports},

    ResumeRule{"parallel.pipeline", kSaid, kRounding},
    ResumeRule{"parallel.schedule", kSaid, kRounding},
    ResumeRule{"parallel.chunks", kSaid, kRounding},
    ResumeRule{"parallel.stages", kSaid, kRounding},
    ResumeRule{"parallel.data", kSaid, kRounding},
    ResumeRule{"parallel.context", kSaid, kRounding},
    ResumeRule{"parallel.context_order", kSaid, kRounding},
    ResumeRule{"parallel.context_exchange", kSaid, kRounding},
    ResumeRule{"parallel.expert", kSaid, kRounding},
    ResumeRule{"parallel.tensor", kSaid, kRounding},
    ResumeRule{"parallel.expert_tensor", kSaid, kRounding},
    ResumeRule{"parallel.zero", kSaid, kRounding},
    ResumeRule{"parallel.bucket_mib", kSaid, kRounding},
    ResumeRule{"parallel.sequence_parallel", kSaid, kRounding},
    ResumeRule{"parallel.expert_buffer", kFree, "room, which no value depends on"},
    ResumeRule{"parallel.overlap_experts", kFree, "the same sums, with another order of the work"},
    ResumeRule{"parallel.overlap_tensor", kSaid, kRounding},

    ResumeRule{"memory.recompute", kFree, "the same bits, computed twice or kept"},
    ResumeRule{"memory.recompute_layers", kFree, "the same bits, computed twice or kept"},
    ResumeRule{"memory.head_rows", kSaid, kRounding},
    ResumeRule{"memory.budget_gib", kFree, "room, which no value depends on"},

    ResumeRule{
        "data.train",
        kSaid,
        "the same text elsewhere is the same text; another one goes on at the same sample of "
        "its own order, and is refused where validation is its held-out end"},
    ResumeRule{"data.validation", kRefused, kHeldOut},
    ResumeRule{"data.held_out", kRefused, kHeldOut},
    ResumeRule{"data.tokenizer", kRefused, kTokens},
    ResumeRule{"data.evaluate", kFree, kReports},
    ResumeRule{"data.tokenizer_pattern", kRefused, kTokens},
    ResumeRule{"data.field", kRefused, kHeldOut},
    ResumeRule{"data.prompt_field", kRefused, kHeldOut},
    ResumeRule{"data.response_field", kRefused, kHeldOut},
    ResumeRule{"data.document_boundaries", kRefused, kTargets},

    ResumeRule{"batch.sequence_length",
               kSaid,
               "the position is carried over in tokens, and refused where that is no whole sample"},
    ResumeRule{"batch.micro_batch", kSaid, kRounding},
    ResumeRule{"batch.global_batch", kSaid, "the tokens of a step and the position are named"},

    ResumeRule{"optimizer.learning_rate", kSaid, kRate},
    ResumeRule{"optimizer.beta1", kSaid, kMoments},
    ResumeRule{"optimizer.beta2", kSaid, kMoments},
    ResumeRule{"optimizer.eps", kSaid, kOptimizer},
    ResumeRule{"optimizer.weight_decay", kSaid, kOptimizer},
    ResumeRule{"optimizer.clip_norm", kSaid, kOptimizer},
    ResumeRule{"optimizer.max_skipped", kSaid, kOptimizer},
    ResumeRule{"optimizer.rewind_norm", kSaid, kOptimizer},
    ResumeRule{"optimizer.max_rewinds", kSaid, kOptimizer},

    ResumeRule{"schedule.steps", kSaid, kRate},
    ResumeRule{"schedule.warmup_steps", kSaid, kRate},
    ResumeRule{"schedule.decay", kSaid, kRate},
    ResumeRule{"schedule.decay_steps", kSaid, kRate},
    ResumeRule{"schedule.min_ratio", kSaid, kRate},

    ResumeRule{"loss.balance", kSaid, kLoss},
    ResumeRule{"loss.router_z", kSaid, kLoss},

    ResumeRule{"precision.compute", kRefused, kCompute},

    ResumeRule{"checkpoint.every", kFree, kReports},
    ResumeRule{
        "checkpoint.keep", kSaid, "after the next save this many checkpoints of the run are left"},
    ResumeRule{"checkpoint.background", kFree, "the same files, written at another time"},
    ResumeRule{"checkpoint.max_failures", kFree, kReports},
    ResumeRule{"checkpoint.keep_every",
               kSaid,
               "after the next save the first from each multiple on are left beside the newest"},

    ResumeRule{"metrics.every", kFree, kReports},
    ResumeRule{"metrics.validate_every", kFree, kReports},
    ResumeRule{"metrics.validate_batches", kFree, kReports},
    ResumeRule{"metrics.evaluate_every", kFree, kReports},
    ResumeRule{"metrics.sample_every", kFree, kReports},
    ResumeRule{"metrics.sample_tokens", kFree, kReports},
    ResumeRule{"metrics.sample_prompt", kFree, kReports},
    ResumeRule{"metrics.sample_temperature", kFree, kReports},
    ResumeRule{"metrics.trace", kFree, kReports},
    ResumeRule{"metrics.tensorboard", kFree, kReports},
};

// A key that says something only beside another one.
bool in_use(std::string_view key, const Config& config) {
  if (key == "schedule.decay_steps") {
    return config.schedule.decay == Decay::wsd;
  }
  if (key == "schedule.min_ratio") {
    return config.schedule.decay != Decay::constant;
  }
  if (key == "data.held_out") {
    return config.data.validation.empty();
  }
  if (key == "model.init_std") {
    return config.model.init == InitScheme::normal;
  }
  return true;
}

std::string_view word_of(OnResume on_resume) {
  constexpr std::array<std::string_view, 3> kWords = {"refused", "one line", "free"};
  return kWords[static_cast<std::size_t>(on_resume)];
}

// Rules that say the same of several keys, in the order of the first of each.
struct Group {
  OnResume on_resume;
  std::string_view follows;
  std::vector<std::string_view> keys;
};

std::vector<Group> groups() {
  std::vector<Group> result;
  for (const ResumeRule& rule : kRules) {
    const auto same = std::find_if(result.begin(), result.end(), [&](const Group& group) {
      return group.on_resume == rule.on_resume && group.follows == rule.follows;
    });
    if (same == result.end()) {
      result.push_back({rule.on_resume, rule.follows, {rule.key}});
    } else {
      same->keys.push_back(rule.key);
    }
  }
  std::stable_sort(result.begin(), result.end(), [](const Group& a, const Group& b) {
    return a.on_resume < b.on_resume;
  });
  return result;
}

}  // namespace

std::span<const ResumeRule> resume_rules() {
  return kRules;
}

std::string describe(const ConfigChange& change) {
  return std::string(change.rule->key) + " is " + change.is + " and was " + change.was;
}

std::vector<ConfigChange> changes_on_resume(const Config& was, const Config& is) {
  Config old_config = was;
  Config new_config = is;
  const std::vector<Field> old_fields = fields_of(old_config);
  const std::vector<Field> new_fields = fields_of(new_config);
  std::vector<ConfigChange> changes;
  for (std::size_t i = 0; i < new_fields.size(); ++i) {
    const std::string key = new_fields[i].path();
    const auto rule = std::find_if(
        kRules.begin(), kRules.end(), [&](const ResumeRule& each) { return each.key == key; });
    require(rule != kRules.end(), key + " has a row in the table of what a resume may change");
    ConfigChange change{.rule = &*rule, .was = print(old_fields[i]), .is = print(new_fields[i])};
    if (change.was != change.is && rule->on_resume != OnResume::free &&
        (in_use(key, was) || in_use(key, is))) {
      changes.push_back(std::move(change));
    }
  }
  return changes;
}

bool of_one_run(const Config& was, const Config& is) {
  const std::vector<ConfigChange> changes = changes_on_resume(was, is);
  return std::none_of(changes.begin(), changes.end(), [](const ConfigChange& change) {
    return change.rule->on_resume == OnResume::refused;
  });
}

std::string resume_table() {
  std::string text = "| keys | changed on resume | |\n| --- | --- | --- |\n";
  for (const Group& group : groups()) {
    std::string keys;
    for (const std::string_view key : group.keys) {
      keys += (keys.empty() ? "`" : " `") + std::string(key) + "`";
    }
    text += "| " + keys + " | " + std::string(word_of(group.on_resume)) + " | " +
            std::string(group.follows) + " |\n";
  }
  return text;
}

std::string resume_text() {
  constexpr std::size_t kWidth = 96;
  const std::string indent(13, ' ');
  std::string text;
  for (const Group& group : groups()) {
    std::string first(word_of(group.on_resume));
    first.resize(indent.size() - 2, ' ');
    text += "  " + first + std::string(group.follows) + "\n";
    std::string line = indent;
    for (const std::string_view key : group.keys) {
      if (line.size() + 2 + key.size() > kWidth) {
        text += line + "\n";
        line = indent;
      }
      line += "  " + std::string(key);
    }
    text += line + "\n";
  }
  return text;
}

}  // namespace memphis
