// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/schema.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <optional>
#include <utility>

#include "csrc/config/path_text.h"
#include "csrc/config/presets.h"
#include "csrc/config/ranges.h"
#include "csrc/config/scalar.h"
#include "csrc/config/words.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

// Far above any model that was built, and small enough that the product of any three fits 64 bits.
constexpr std::int64_t kMaxVocab = std::int64_t{1} << 20;
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 20;
constexpr std::int64_t kMaxRanks = (std::int64_t{1} << 31) - 1;  // MPI counts ranks in an int
constexpr std::int64_t kMaxCount =
    4096;  // layers, heads, experts, ranks of an axis; a head's width
constexpr std::int64_t kMaxSequences = std::int64_t{1} << 20;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 20;
constexpr std::int64_t kMaxSteps = std::int64_t{1} << 40;
// What does not fit 64 bits is read as the largest integer, which is therefore out of range.
constexpr std::int64_t kMaxSeed = std::numeric_limits<std::int64_t>::max() - 1;

constexpr double kMaxFailureHours = 1e12;

Integer count(std::int64_t& value, std::int64_t low, std::int64_t high) {
  return {.value = &value, .low = low, .high = high};
}

Integer required(std::int64_t& value, std::int64_t high) {
  return {.value = &value, .low = 1, .high = high, .required = true};
}

Number at_least(double low, double& value) {
  return {&value, Number::Low::at_least, low, Number::High::at_most, kMaxFactor};
}

Number above(double low, double& value, double high = kMaxFactor) {
  return {&value, Number::Low::above, low, Number::High::at_most, high};
}

Number closed(double low, double& value, double high) {
  return {&value, Number::Low::at_least, low, Number::High::at_most, high};
}

Number half_open(double low, double& value, double high) {
  return {&value, Number::Low::at_least, low, Number::High::below, high};
}

Choice one_of(std::string& value, std::vector<std::string_view> words) {
  return {std::move(words),
          [&value] { return std::string_view(value); },
          [&value](std::string_view word) { value = std::string(word); }};
}

// `words` in the order of the enumerators.
template <class Enum>
Choice one_of(Enum& value, std::vector<std::string_view> words) {
  return {words,
          [&value, words] { return words[static_cast<std::size_t>(value)]; },
          [&value, words](std::string_view word) {
            for (std::size_t i = 0; i < words.size(); ++i) {
              if (words[i] == word) {
                value = static_cast<Enum>(i);
              }
            }
          }};
}

std::vector<std::string_view> schedule_words() {
  std::vector<std::string_view> words;
  for (const ScheduleRule& rule : kScheduleRules) {
    words.push_back(rule.name);
  }
  return words;
}

WordSet recompute_words(MemoryConfig& memory) {
  WordSet result;
  for (const RecomputeGroup& group : kRecomputeGroups) {
    const bool alone = group.member == &RecomputeGroups::block;
    (alone ? result.alone : result.words).push_back(group.name);
  }
  result.alone.insert(result.alone.end(), {"none", "auto"});
  result.get = [&memory] {
    std::vector<std::string_view> words;
    for (const auto& [word, member] : kRecomputeGroups) {
      if (!memory.recompute_auto && memory.recompute.*member) {
        words.push_back(word);
      }
    }
    if (words.empty()) {
      words.emplace_back(memory.recompute_auto ? "auto" : "none");
    }
    return words;
  };
  result.set = [&memory](const std::vector<std::string_view>& words) {
    memory.recompute_auto = words.front() == "auto";
    for (const auto& [word, member] : kRecomputeGroups) {
      memory.recompute.*member = std::find(words.begin(), words.end(), word) != words.end();
    }
  };
  return result;
}

struct TimeUnit {
  char letter;
  std::int64_t seconds;
};
constexpr std::array kTimeUnits = {
    TimeUnit{'d', 86400}, TimeUnit{'h', 3600}, TimeUnit{'m', 60}, TimeUnit{'s', 1}};
constexpr std::int64_t kMaxSeconds = 365 * kTimeUnits[0].seconds;

// Of "3h50m"; nothing of what is none.
std::optional<std::int64_t> seconds_of(std::string_view text) {
  std::int64_t seconds = 0;
  std::size_t next_unit = 0;
  while (!text.empty()) {
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    const auto digits = static_cast<std::size_t>(end - text.data());
    if (error != std::errc{} || digits == text.size() || number < 0 || number > kMaxSeconds) {
      return std::nullopt;
    }
    while (next_unit < kTimeUnits.size() && kTimeUnits[next_unit].letter != text[digits]) {
      ++next_unit;
    }
    if (next_unit == kTimeUnits.size()) {
      return std::nullopt;
    }
    seconds += number * kTimeUnits[next_unit++].seconds;
    text.remove_prefix(digits + 1);
  }
  return seconds;
}

std::string duration_text(std::int64_t seconds) {
  std::string text;
  for (const auto& [letter, unit] : kTimeUnits) {
    if (seconds >= unit) {
      text += std::to_string(seconds / unit) + letter;
      seconds %= unit;
    }
  }
  return text;
}

// Whether it is meant as one, whatever is wrong with it.
bool looks_numeric(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789+-.eE") == std::string_view::npos;
}

class Assigner {
 public:
  Assigner(const YamlNode& node, std::string path) : node_(node), path_(std::move(path)) {}

  void operator()(const Integer& target) const {
    if (!target.word.empty() && node_.kind == YamlNode::Kind::scalar &&
        !looks_numeric(node_.text)) {
      word_of(node_, {target.word});
      *target.value = target.word_value;
      return;
    }
    *target.value = integer_of(node_, path_, target.low, target.high);
  }

  void operator()(const Duration& target) const {
    const std::string text = parse_string(node_, path_);
    if (text == "auto" || text == "none") {
      *target.value = text == "auto" ? target.auto_value : 0;
      return;
    }
    const std::optional<std::int64_t> seconds = seconds_of(text);
    if (!seconds || *seconds < 1 || *seconds > kMaxSeconds) {
      refuse(node_,
             path_,
             "it is auto, none, or a time from 1s to 365d, its largest unit first",
             "write 3h50m, say, with d, h, m and s");
    }
    *target.value = *seconds;
  }

  void operator()(const Number& target) const {
    const double value = parse_number(node_, path_);
    const bool low_is_open = target.low_kind == Number::Low::above;
    const bool high_is_open = target.high_kind == Number::High::below;
    const std::string low = (low_is_open ? "above " : "at least ") + print_number(target.low);
    const std::string high = (high_is_open ? "below " : "at most ") + print_number(target.high);
    const std::string range = "it is " + low + " and " + high;
    if (value < target.low || (low_is_open && value == target.low)) {
      refuse(node_, path_, range, "use a value " + (low_is_open ? low : "of " + low));
    }
    if (value > target.high || (high_is_open && value == target.high)) {
      refuse(node_, path_, range, "use a value " + (high_is_open ? high : "of " + high));
    }
    // Of those that begin at 0; the host's own have no need of less either.
    if (target.low == 0 && value > 0 && value < kMinFactor) {
      refuse(node_,
             path_,
             "it is 0 in f32, whose least number is " + print_number(kMinFactor),
             low_is_open ? "use at least that" : "use at least that, or 0");
    }
    *target.value = value;
  }

  void operator()(const Switch& target) const { *target.value = parse_bool(node_, path_); }

  void operator()(const Text& target) const { *target.value = parse_string(node_, path_); }

  void operator()(const TextList& target) const {
    if (node_.kind != YamlNode::Kind::sequence) {
      refuse(node_, path_, "its value is a list", "write [a, b]");
    }
    if (node_.items.empty() && !target.empty_means.empty()) {
      throw ConfigError(node_.place + ": " + path_ + " is [] (of an empty variable, perhaps; " +
                        "it would mean " + std::string(target.empty_means) +
                        "); name what it is for, or leave the key out for that");
    }
    target.value->clear();
    if (target.entries != nullptr) {
      target.entries->clear();
    }
    for (std::size_t i = 0; i < node_.items.size(); ++i) {
      const YamlNode& item = node_.items[i];
      const std::string path = path_ + "[" + std::to_string(i) + "]";
      if (target.entries == nullptr) {
        target.value->push_back(parse_string(item, path));
        continue;
      }
      const bool is_map = item.kind == YamlNode::Kind::map;
      if (is_map != (node_.items.front().kind == YamlNode::Kind::map)) {
        refuse(item,
               path,
               "the entries are paths, which are one text, or maps, which are a text each",
               "write all of them as {path: a.txt}, or none");
      }
      if (is_map) {
        read_entry(item, path, target);
      } else {
        target.value->push_back(parse_string(item, path));
      }
    }
  }

  void operator()(const IntegerList& target) const {
    if (node_.kind != YamlNode::Kind::sequence) {
      refuse(node_, path_, "its value is a list of integers", "write [1, 2], or [] for none");
    }
    std::vector<std::int64_t> values;
    for (std::size_t i = 0; i < node_.items.size(); ++i) {
      values.push_back(integer_of(
          node_.items[i], path_ + "[" + std::to_string(i) + "]", target.low, target.high));
    }
    *target.value = std::move(values);
  }

  void operator()(const Choice& target) const { target.set(word_of(node_, target.words)); }

  void operator()(const WordSet& target) const {
    std::vector<std::string_view> known = target.words;
    known.insert(known.end(), target.alone.begin(), target.alone.end());
    const bool is_list = node_.kind == YamlNode::Kind::sequence;
    std::vector<std::string_view> words;
    for (const YamlNode& item : is_list ? node_.items : std::vector<YamlNode>{node_}) {
      words.push_back(word_of(item, known));
    }
    if (words.empty()) {
      refuse(node_, path_, "the list is empty", "write " + join_words(known, "or"));
    }
    for (const std::string_view word : target.alone) {
      if (words.size() > 1 && std::find(words.begin(), words.end(), word) != words.end()) {
        refuse(node_,
               path_,
               "with other words, and " + std::string(word) + " stands alone",
               "write " + std::string(word) + ", or the others without it");
      }
    }
    target.set(words);
  }

 private:
  static void read_entry(const YamlNode& node, const std::string& path, const TextList& target) {
    std::vector<std::string_view> known = {"path", "name"};
    if (target.weighted) {
      known.emplace_back("weight");
    }
    std::vector<std::string> seen;
    std::string file;
    DataEntry entry;
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      const std::string& key = node.keys[i].text;
      const std::string key_path = path + "." + key;
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        const std::string_view nearest = nearest_word(key, known);
        throw ConfigError(node.keys[i].place + ": unknown key " + key_path +
                          " (an entry has no such key); " +
                          (nearest.empty() ? "its keys are " + join_words(known, "and")
                                           : "did you mean " + std::string(nearest) + "?"));
      }
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
        throw ConfigError(node.keys[i].place + ": " + key_path +
                          " is given twice (in one entry); keep one of the two");
      }
      seen.push_back(key);
      if (key == "path") {
        file = parse_string(node.items[i], key_path);
      } else if (key == "name") {
        entry.name = parse_string(node.items[i], key_path);
      } else {
        entry.weight = parse_number(node.items[i], key_path);
        if (!(entry.weight > 0) || entry.weight > kMaxFactor) {
          refuse(node.items[i], key_path, "a weight is above 0 and at most 1e6", "use 1, say");
        }
      }
    }
    if (std::find(seen.begin(), seen.end(), "path") == seen.end()) {
      refuse(node, path, "it names no path", "write {path: a.txt}");
    }
    if (target.weighted && entry.weight == 0) {
      refuse(node,
             path,
             "it says no weight, which is its share of a mixture's samples over the sum of all",
             "write {path: a.txt, weight: 1}");
    }
    target.value->push_back(std::move(file));
    target.entries->push_back(std::move(entry));
  }

  static std::int64_t integer_of(const YamlNode& node,
                                 const std::string& path,
                                 std::int64_t low,
                                 std::int64_t high) {
    const std::int64_t value = parse_integer(node, path);
    if (value < low || value > high) {
      refuse(node,
             path,
             "it is between " + std::to_string(low) + " and " + std::to_string(high),
             value < low ? "use at least " + std::to_string(low)
                         : "use at most " + std::to_string(high));
    }
    return value;
  }

  // The one of `known` that `node` is.
  std::string_view word_of(const YamlNode& node, const std::vector<std::string_view>& known) const {
    const std::string word = parse_string(node, path_);
    const auto found = std::find(known.begin(), known.end(), word);
    if (found != known.end()) {
      return *found;
    }
    std::vector<std::string_view> shown = known;
    std::erase(shown, std::string_view{});
    const std::string_view nearest = nearest_word(word, shown);
    const std::string why = shown.size() == 1 ? "there is only " + std::string(shown.front())
                                              : "it is one of " + join_words(shown, "and");
    refuse(node,
           path_,
           why,
           nearest.empty() ? "write " + join_words(shown, "or")
                           : "did you mean " + std::string(nearest) + "?");
  }

  const YamlNode& node_;
  std::string path_;
};

struct Printer {
  std::string operator()(const Integer& target) const {
    if (target.low > 0 && *target.value == 0) {
      return {};  // still to be derived
    }
    const bool is_word = !target.word.empty() && *target.value == target.word_value;
    return is_word ? std::string(target.word) : std::to_string(*target.value);
  }
  std::string operator()(const Duration& target) const {
    return *target.value == 0                   ? "none"
           : *target.value == target.auto_value ? "auto"
                                                : duration_text(*target.value);
  }
  std::string operator()(const Number& target) const { return print_number(*target.value); }
  std::string operator()(const Switch& target) const { return *target.value ? "true" : "false"; }
  std::string operator()(const Text& target) const {
    return quote(target.is_path ? escape_path(*target.value) : *target.value);
  }
  std::string operator()(const TextList& target) const {
    if (target.value->empty() && !target.empty_means.empty()) {
      return {};
    }
    std::string text;
    for (std::size_t i = 0; i < target.value->size(); ++i) {
      const std::string path = quote(escape_path((*target.value)[i]));
      text += text.empty() ? "" : ", ";
      if (target.entries == nullptr || target.entries->empty()) {
        text += path;
        continue;
      }
      const DataEntry& entry = (*target.entries)[i];
      text += "{path: " + path;
      text += target.weighted ? ", weight: " + print_number(entry.weight) : "";
      text += entry.name.empty() ? "" : ", name: " + quote(entry.name);
      text += "}";
    }
    return "[" + text + "]";
  }
  std::string operator()(const IntegerList& target) const {
    std::string text;
    for (const std::int64_t value : *target.value) {
      text += (text.empty() ? "" : ", ") + std::to_string(value);
    }
    return "[" + text + "]";
  }
  std::string operator()(const Choice& target) const {
    const std::string_view word = target.get();
    return word.empty() ? quote("") : std::string(word);
  }
  std::string operator()(const WordSet& target) const {
    std::string text;
    const std::vector<std::string_view> words = target.get();
    for (const std::string_view word : words) {
      text += (text.empty() ? "" : ", ") + std::string(word);
    }
    return words.size() == 1 ? text : "[" + text + "]";
  }
};

}  // namespace

std::vector<Field> fields_of(Config& c) {
  std::vector<std::string_view> presets = preset_names();
  presets.emplace_back();  // none
  return {
      {"model", "preset", one_of(c.model.preset, std::move(presets))},
      {"model", "vocab_size", required(c.model.vocab_size, kMaxVocab)},
      {"model", "num_layers", required(c.model.num_layers, kMaxCount)},
      {"model", "d_model", required(c.model.d_model, kMaxWidth)},
      {"model", "num_heads", required(c.model.num_heads, kMaxCount)},
      {"model", "num_kv_heads", count(c.model.num_kv_heads, 1, kMaxCount)},
      {"model", "head_dim", count(c.model.head_dim, 2, kMaxCount)},
      {"model", "ffn_dim", required(c.model.ffn_dim, kMaxWidth)},
      {"model", "num_experts", required(c.model.num_experts, kMaxCount)},
      {"model", "experts_per_token", count(c.model.experts_per_token, 1, kMaxCount)},
      {"model", "dense_ffn_dim", count(c.model.dense_ffn_dim, 0, kMaxWidth)},
      {"model", "embedding_multiplier", above(0, c.model.embedding_multiplier)},
      {"model", "output_multiplier", above(0, c.model.output_multiplier)},
      {"model", "attention_multiplier", above(0, c.model.attention_multiplier)},
      {"model", "attention_cap", at_least(0, c.model.attention_cap)},
      {"model", "router_cap", at_least(0, c.model.router_cap)},
      {"model", "final_cap", at_least(0, c.model.final_cap)},
      {"model",
       "attention_temperature_len",
       count(c.model.attention_temperature_len, 0, kMaxPositions)},
      {"model", "rope_theta", closed(kMinTheta, c.model.rope_theta, kMaxTheta)},
      {"model", "tie_embeddings", Switch{&c.model.tie_embeddings}},
      {"model", "norm_eps", closed(kMinEpsilon, c.model.norm_eps, kMaxEpsilon)},
      {"model", "pad_id", count(c.model.pad_id, -1, kMaxVocab - 1)},
      {"model", "max_sequence_length", count(c.model.max_sequence_length, 1, kMaxPositions)},
      {"model", "init", one_of(c.model.init, {"fan_in", "normal"})},
      {"model", "init_std", above(0, c.model.init_std)},
      {"model", "router_init_std", above(0, c.model.router_init_std)},

      {"run", "dir", Text{&c.run.dir, true}},
      {"run", "device", one_of(c.run.device, {"auto", "cpu", "cuda"})},
      {"run", "seed", count(c.run.seed, 0, kMaxSeed)},
      {"run", "resume", one_of(c.run.resume, {"auto", "required", "never"})},
      {"run", "init_from", Text{&c.run.init_from, true}},
      {"run", "export_every", count(c.run.export_every, 0, kMaxSteps)},
      {"run", "lost_seconds", at_least(0, c.run.lost_seconds)},
      {"run", "hang_seconds", at_least(0, c.run.hang_seconds)},
      {"run", "graph", one_of(c.run.graph, {"auto", "required", "never"})},
      {"run", "time_limit", Duration{&c.run.time_limit, kAutoTimeLimit}},
      {"run", "failure_hours", above(0, c.run.failure_hours, kMaxFailureHours)},
      {"run", "verify_every", count(c.run.verify_every, 0, kMaxSteps)},
      {"run", "recompute_check_every", count(c.run.recompute_check_every, 0, kMaxSteps)},

      {"parallel", "pipeline", count(c.parallel.pipeline, 1, kMaxCount)},
      {"parallel", "schedule", one_of(c.parallel.schedule, schedule_words())},
      {"parallel", "chunks", count(c.parallel.chunks, 0, kMaxCount)},
      {"parallel", "stages", IntegerList{&c.parallel.stages, 0, kMaxCount}},
      {"parallel", "data", count(c.parallel.data, 0, kMaxRanks)},
      {"parallel", "context", count(c.parallel.context, 1, kMaxCount)},
      {"parallel", "context_order", one_of(c.parallel.context_order, {"auto", "zigzag", "blocks"})},
      {"parallel",
       "context_exchange",
       one_of(c.parallel.context_exchange, {"auto", "gather", "ring", "all_to_all"})},
      {"parallel", "expert", count(c.parallel.expert, 1, kMaxCount)},
      {"parallel", "tensor", count(c.parallel.tensor, 1, kMaxCount)},
      {"parallel", "expert_tensor", count(c.parallel.expert_tensor, 1, kMaxCount)},
      {"parallel", "zero", count(c.parallel.zero, 0, 3)},
      {"parallel", "bucket_mib", at_least(0, c.parallel.bucket_mib)},
      {"parallel", "sequence_parallel", Switch{&c.parallel.sequence_parallel}},
      {"parallel", "expert_buffer", at_least(0, c.parallel.expert_buffer)},
      {"parallel",
       "overlap_experts",
       one_of(c.parallel.overlap_experts, {"auto", "required", "never"})},
      {"parallel",
       "overlap_tensor",
       one_of(c.parallel.overlap_tensor, {"auto", "required", "never"})},

      {"memory", "recompute", recompute_words(c.memory)},
      {"memory", "recompute_layers", count(c.memory.recompute_layers, 0, kMaxCount)},
      {"memory", "head_rows", count(c.memory.head_rows, 0, kMaxPositions)},
      {"memory", "budget_gib", at_least(0, c.memory.budget_gib)},

      {"data",
       "train",
       TextList{&c.data.train, "memphis's own sources", &c.data.mixture, /*weighted=*/true}},
      {"data", "validation", TextList{&c.data.validation, {}, &c.data.validation_sets}},
      {"data", "held_out", half_open(0, c.data.held_out, 1)},
      {"data", "tokenizer", Text{&c.data.tokenizer, true}},
      {"data", "evaluate", TextList{&c.data.evaluate}},
      {"data", "tokenizer_pattern", Text{&c.data.tokenizer_pattern}},
      {"data", "field", Text{&c.data.field}},
      {"data", "prompt_field", Text{&c.data.prompt_field}},
      {"data", "response_field", Text{&c.data.response_field}},
      {"data", "document_boundaries", Switch{&c.data.document_boundaries}},

      {"batch", "sequence_length", count(c.batch.sequence_length, 1, kMaxPositions)},
      {"batch", "micro_batch", count(c.batch.micro_batch, 1, kMaxSequences)},
      {"batch", "global_batch", count(c.batch.global_batch, 1, kMaxSequences)},

      {"optimizer", "learning_rate", above(0, c.optimizer.learning_rate, 100)},
      {"optimizer", "beta1", half_open(0, c.optimizer.beta1, 1)},
      {"optimizer", "beta2", half_open(0, c.optimizer.beta2, 1)},
      {"optimizer", "eps", closed(kMinEpsilon, c.optimizer.eps, kMaxEpsilon)},
      {"optimizer", "weight_decay", at_least(0, c.optimizer.weight_decay)},
      {"optimizer", "clip_norm", at_least(0, c.optimizer.clip_norm)},
      {"optimizer", "max_skipped", count(c.optimizer.max_skipped, 0, kMaxCount)},
      {"optimizer", "rewind_norm", at_least(0, c.optimizer.rewind_norm)},
      {"optimizer", "max_rewinds", count(c.optimizer.max_rewinds, 1, kMaxCount)},

      {"schedule", "steps", required(c.schedule.steps, kMaxSteps)},
      {"schedule", "warmup_steps", count(c.schedule.warmup_steps, 0, kMaxSteps)},
      {"schedule", "decay", one_of(c.schedule.decay, {"cosine", "wsd", "constant"})},
      {"schedule", "decay_steps", count(c.schedule.decay_steps, 1, kMaxSteps)},
      {"schedule", "min_ratio", closed(0, c.schedule.min_ratio, 1)},

      {"loss", "balance", at_least(0, c.loss.balance)},
      {"loss", "router_z", at_least(0, c.loss.router_z)},

      {"precision", "compute", one_of(c.precision.compute, {"auto", "bf16", "f32", "f64"})},

      {"checkpoint",
       "every",
       Integer{.value = &c.checkpoint.every,
               .low = 0,
               .high = kMaxSteps,
               .word = "auto",
               .word_value = kAutoInterval}},
      {"checkpoint", "keep", count(c.checkpoint.keep, 1, kMaxCount)},
      {"checkpoint", "background", one_of(c.checkpoint.background, {"auto", "required", "never"})},
      {"checkpoint", "max_failures", count(c.checkpoint.max_failures, 0, kMaxCount)},
      {"checkpoint", "keep_every", count(c.checkpoint.keep_every, 0, kMaxSteps)},

      {"metrics", "every", count(c.metrics.every, 1, kMaxSteps)},
      {"metrics", "validate_every", count(c.metrics.validate_every, 0, kMaxSteps)},
      {"metrics", "validate_batches", count(c.metrics.validate_batches, 0, kMaxSteps)},
      {"metrics", "evaluate_every", count(c.metrics.evaluate_every, 0, kMaxSteps)},
      {"metrics", "sample_every", count(c.metrics.sample_every, 0, kMaxSteps)},
      {"metrics", "sample_tokens", count(c.metrics.sample_tokens, 1, kMaxPositions)},
      {"metrics", "sample_prompt", Text{&c.metrics.sample_prompt}},
      {"metrics", "sample_temperature", at_least(0, c.metrics.sample_temperature)},
      {"metrics", "trace", Switch{&c.metrics.trace}},
      {"metrics", "tensorboard", Switch{&c.metrics.tensorboard}},
  };
}

bool Field::names_paths() const {
  const Text* text = std::get_if<Text>(&target);
  return std::holds_alternative<TextList>(target) || (text != nullptr && text->is_path);
}

void assign(const Field& field, const YamlNode& node) {
  std::visit(Assigner(node, field.path()), field.target);
}

std::string print(const Field& field) {
  return std::visit(Printer{}, field.target);
}

std::string to_yaml(const std::vector<Field>& fields) {
  std::string text;
  std::string_view section;
  for (const Field& field : fields) {
    if (field.section != section) {
      section = field.section;
      text += std::string(section) + ":\n";
    }
    if (const std::string value = print(field); !value.empty()) {
      text += "  " + std::string(field.key) + ": " + value + "\n";
    }
  }
  return text;
}

std::vector<std::string> overrides_between(Config from, Config to) {
  const std::vector<Field> before = fields_of(from);
  const std::vector<Field> after = fields_of(to);
  std::vector<std::string> overrides;
  for (std::size_t i = 0; i < before.size(); ++i) {
    if (const std::string value = print(after[i]); value != print(before[i])) {
      overrides.push_back(after[i].path() + "=" + value);
    }
  }
  return overrides;
}

}  // namespace memphis
