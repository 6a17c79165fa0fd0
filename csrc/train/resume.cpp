// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/resume.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/read_back.h"
#include "csrc/checkpoint/store.h"
#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/config/resume_rules.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"
#include "csrc/data/kept_tokenizer.h"
#include "csrc/optim/lr_schedule.h"
#include "csrc/train/run_lock.h"

namespace memphis {
namespace {

// What a checkpoint, after step `step` of a run of config `was`, becomes under config `is`.
struct Setting {
  const Config& was;
  const Config& is;
  std::int64_t step;
  std::uint64_t samples;  // of the old length
};

std::string rates(const Setting& at) {
  const auto rate = [](const Config& config, std::int64_t step) {
    return learning_rate(config.schedule, config.optimizer.learning_rate, step);
  };
  std::string text =
      fmt::format("the learning rate of step {} was {:.3e}, that of step {} is {:.3e}",
                  at.step,
                  rate(at.was, std::max<std::int64_t>(at.step, 1)),
                  at.step + 1,
                  rate(at.is, at.step + 1));
  text += fmt::format(" (unchanged it would be {:.3e})", rate(at.was, at.step + 1));
  if (at.step >= at.is.schedule.steps) {
    text = fmt::format("step {} is behind that: there is nothing to do", at.step);
  }
  return text;
}

// How large the next update is, against what it would be if the moments had been averaged with the
// new value from the first step on, for a gradient that does not change: the correction for the
// moments' start at zero is that of the new value.
double first_update(double was_beta, double is_beta, std::int64_t step, bool second_moment) {
  const auto n = static_cast<double>(step);
  const double held = 1 - is_beta * std::pow(was_beta, n);
  const double corrected = held / (1 - std::pow(is_beta, n + 1));
  return second_moment ? 1 / std::sqrt(corrected) : corrected;
}

std::string moments(double was_beta, double is_beta, std::int64_t step, bool second_moment) {
  return fmt::format(
      "the moments were averaged with the old value: updates begin {:.2f} times as large as if "
      "they had been averaged with the new one",
      first_update(was_beta, is_beta, step, second_moment));
}

// The tokens that a run has been trained on; nothing where they are too many to count.
std::optional<std::uint64_t> position(const Setting& at) {
  std::uint64_t tokens = 0;
  if (__builtin_mul_overflow(
          at.samples, static_cast<std::uint64_t>(at.was.batch.sequence_length), &tokens)) {
    return std::nullopt;
  }
  return tokens;
}

// What follows from a change, in numbers where there are any.
std::string consequence(const ConfigChange& change, const Setting& at) {
  const std::string_view key = change.rule->key;
  if (key == "optimizer.learning_rate" || key.starts_with("schedule.")) {
    return rates(at);
  }
  if (key == "optimizer.beta1") {
    return moments(at.was.optimizer.beta1, at.is.optimizer.beta1, at.step, false);
  }
  if (key == "optimizer.beta2") {
    return moments(at.was.optimizer.beta2, at.is.optimizer.beta2, at.step, true);
  }
  if (key == "batch.global_batch") {
    const auto tokens = [](const Config& config) {
      return config.batch.global_batch * config.batch.sequence_length;
    };
    return fmt::format(
        "a step has {} tokens and had {}; step {} begins at sample {} as it would have",
        tokens(at.is),
        tokens(at.was),
        at.step + 1,
        at.samples);
  }
  if (key == "checkpoint.keep") {
    return fmt::format("the newest {} checkpoints stay from the next save on", change.is);
  }
  return std::string(change.rule->follows);
}

// The largest length up to `length` that `tokens` is a multiple of, and the smallest from there on
// that a config may have.
std::vector<std::string> lengths_that_divide(std::uint64_t tokens, std::int64_t length) {
  constexpr std::int64_t kMaxLength = std::int64_t{1} << 20;
  const auto divides = [&](std::int64_t each) {
    return tokens % static_cast<std::uint64_t>(each) == 0;
  };
  std::int64_t below = length;
  while (!divides(below)) {
    --below;  // 1 divides
  }
  std::int64_t above = length;
  while (above < kMaxLength && !divides(above)) {
    ++above;
  }
  std::vector<std::string> lengths = {std::to_string(below)};
  if (divides(above)) {
    lengths.push_back(std::to_string(above));
  }
  return lengths;
}

// "batch.sequence_length=32 (or 40)"
std::string keep_length(const std::string& was, std::vector<std::string> others) {
  std::erase(others, was);
  return fmt::format("batch.sequence_length={}{}",
                     was,
                     others.empty() ? "" : fmt::format(" (or {})", fmt::join(others, " or ")));
}

// Carries the position over to samples of another length.
void carry_position(const ConfigChange& change, const Setting& at, Resumption& result) {
  const std::optional<std::uint64_t> tokens = position(at);
  const auto length = static_cast<std::uint64_t>(at.is.batch.sequence_length);
  if (!tokens || *tokens % length != 0) {
    result.refused.push_back(
        {.what = describe(change),
         .why = tokens
                    ? fmt::format("the run is at token {}, where no sample of {} tokens begins, so "
                                  "text would be left out or come twice",
                                  *tokens,
                                  length)
                    : "the run has had more tokens than 64 bits count",
         .keep = tokens ? keep_length(change.was,
                                      lengths_that_divide(*tokens, at.is.batch.sequence_length))
                        : keep_length(change.was, {})});
    return;
  }
  result.samples = *tokens / length;
  result.said.push_back(fmt::format(
      "{}; the run goes on at token {}, which is sample {} of the new length and was {} "
      "of the old; samples of another length have an order of their own, so of this "
      "pass over the text some comes again and some does not come",
      describe(change),
      *tokens,
      result.samples,
      at.samples));
}

bool same_validation(const Config& was,
                     const Config& is,
                     const std::string& was_fingerprint,
                     const std::string& is_fingerprint) {
  return !was.data.validation.empty() && !is.data.validation.empty() && !was_fingerprint.empty() &&
         was_fingerprint == is_fingerprint;
}

bool same_tokenizer(const Chosen& chosen, const Dataset* dataset) {
  const std::string& then = chosen.manifest.tokenizer_fingerprint;
  return dataset != nullptr && dataset->tokenizer != nullptr && !then.empty() &&
         dataset->tokenizer->fingerprint() == then;
}

void compare_text(const Chosen& chosen,
                  const Config& config,
                  const Dataset& dataset,
                  Resumption& result) {
  const std::string& tokenizer_then = chosen.manifest.tokenizer_fingerprint;
  const std::string tokenizer_now =
      dataset.tokenizer ? dataset.tokenizer->fingerprint() : std::string("none");
  if (!tokenizer_then.empty() && tokenizer_then != tokenizer_now) {
    result.refused.push_back(
        {.what =
             fmt::format("the tokenizer is not that of the checkpoint (fingerprint {}, then {})",
                         tokenizer_now,
                         tokenizer_then),
         .why = "tokens would stand for other text",
         .keep = "the tokenizer of data.tokenizer, of which " +
                 kept_tokenizer(config.run.dir).string() + " may have a copy"});
  }
  const std::string& now = dataset.fingerprint;
  const std::string& then = chosen.manifest.dataset_fingerprint;
  if (now != then) {
    const std::string what = fmt::format(
        "the training text is not that of the checkpoint (fingerprint {}, then {})", now, then);
    if (chosen.manifest.step >= config.schedule.steps) {
      result.said.push_back(what + "; the run is done and does not read it");
    } else if (config.data.validation.empty() && config.data.held_out > 0) {
      result.refused.push_back(
          {.what = what,
           .why = "its end is held out for validation, and of another text that is another part, "
                  "which may have been trained on",
           .keep = "the text of data.train"});
    } else {
      result.said.push_back(
          fmt::format("{}; the run goes on at sample {} of its own order", what, result.samples));
    }
  }
  const std::string validation = validation_fingerprint(config, dataset);
  const std::string& validated = chosen.manifest.validation_fingerprint;
  if (!validation.empty() && !validated.empty() && validation != validated) {
    result.refused.push_back(
        {.what = fmt::format("the text of data.validation is not that of the checkpoint "
                             "(fingerprint {}, then {})",
                             validation,
                             validated),
         .why = "it may have been trained on, and its loss compares with no earlier one",
         .keep = "the text of data.validation"});
  }
}

// Fills in what the manifest's config says, once the ranks that wrote it are known.
void read_config(Chosen& chosen) {
  try {
    chosen.config =
        parse_config(chosen.manifest.config, "its config", {}, Check::text, chosen.num_writers);
  } catch (const ConfigError& error) {
    chosen.config_problem = error.what();
  }
}

}  // namespace

std::optional<WriterLayout> Chosen::writer() const {
  if (!config) {
    return std::nullopt;
  }
  return WriterLayout{.parallel = config->parallel, .num_ranks = num_writers};
}

Chosen chosen_from(const std::filesystem::path& path, Manifest manifest) {
  Chosen chosen;
  chosen.path = path;
  chosen.num_writers = num_writers(manifest);
  chosen.manifest = std::move(manifest);
  chosen.manifest.files.clear();
  read_config(chosen);
  return chosen;
}

void await_run_directory(const RunConfig& run, Communicator& all) {
  together(all, "run.dir", [&] {
    if (all.rank() == 0) {
      RunLock::await_free(run.dir);
    }
  });
}

std::optional<Chosen> agree_on_checkpoint(const RunConfig& run, Communicator& all) {
  const bool leads = all.rank() == 0;
  std::optional<Found> found;
  with_all_reading_back(all, "checkpoint.choose", [&](const Verify& verify) {
    found = choose_checkpoint(run.dir, run.resume, verify);
  });
  const std::int64_t writers =
      largest_of_all(all, found ? num_writers(found->manifest) : 0, "checkpoint.found");
  if (writers == 0) {
    return {};
  }
  std::string text;
  if (leads) {
    found->manifest.files.clear();
    text = write_manifest(found->manifest);
  }
  text = text_of_rank(all, 0, text, "checkpoint.manifest");
  Chosen chosen;
  together(all, "checkpoint.manifest", [&] {
    chosen.manifest = read_manifest(text, std::filesystem::path(run.dir) / kManifestName);
    chosen.path = std::filesystem::path(run.dir) / checkpoint_name(chosen.manifest.step);
    chosen.num_writers = writers;
    read_config(chosen);
  });
  return chosen;
}

Resumption compare_with_checkpoint(const Chosen& chosen,
                                   const Config& config,
                                   DType compute,
                                   const std::string& products,
                                   const Dataset* dataset,
                                   Communicator& all) {
  Resumption result;
  result.samples = static_cast<std::uint64_t>(chosen.manifest.samples);
  result.contents =
      compare_contents(chosen.path,
                       chosen.num_writers,
                       config.model,
                       chosen.config ? std::optional(chosen.config->model) : std::nullopt,
                       all);
  if (!chosen.config) {
    return result;
  }
  const Config& was = *chosen.config;
  const Setting at{
      .was = was, .is = config, .step = chosen.manifest.step, .samples = result.samples};
  const bool moved =
      dataset != nullptr && same_validation(was,
                                            config,
                                            chosen.manifest.validation_fingerprint,
                                            validation_fingerprint(config, *dataset));
  for (const ConfigChange& change : changes_on_resume(was, config)) {
    const std::string_view key = change.rule->key;
    if (key == "batch.sequence_length") {
      carry_position(change, at, result);
    } else if (key == "data.train") {
      if (dataset != nullptr && dataset->fingerprint == chosen.manifest.dataset_fingerprint) {
        result.said.push_back(describe(change) + "; its text is the same");
      } else {
        result.said.push_back(describe(change));  // more is said of the text itself
      }
    } else if (key == "data.validation" && moved) {
      result.said.push_back(describe(change) + "; its text is the same");
    } else if (key == "data.tokenizer" && same_tokenizer(chosen, dataset)) {
      result.said.push_back(describe(change) + "; its ids are the same");
    } else if (key == "precision.compute") {
      // Said or refused below, by what the words mean here.
    } else if (change.rule->on_resume == OnResume::refused) {
      result.refused.push_back({.what = describe(change),
                                .why = std::string(change.rule->follows),
                                .keep = std::string(key) + "=" + change.was});
    } else {
      result.said.push_back(describe(change) + "; " + consequence(change, at));
    }
  }
  if (result.contents.compute && *result.contents.compute != compute) {
    const std::string_view written = name_of(*result.contents.compute);
    result.refused.push_back(
        {.what = fmt::format(
             "precision.compute is {} on this machine and was {}", name_of(compute), written),
         .why = "weights, master weights and moments are kept in other types",
         .keep = fmt::format("precision.compute={}", written)});
  }
  if (!products.empty() && !chosen.manifest.products.empty() &&
      chosen.manifest.products != products) {
    result.said.push_back(fmt::format(
        "products are those of {} and were of {}; sums may be rounded in another order, "
        "so that bits need not be those of a run that went on there",
        products,
        chosen.manifest.products));
  }
  if (dataset != nullptr) {
    compare_text(chosen, config, *dataset, result);
  }
  return result;
}

void require_same_run(const Chosen& chosen, const Resumption& resumption) {
  std::vector<std::string> what;
  std::vector<std::string> why;
  std::vector<std::string> keep;
  for (const Resumption::Refusal& refusal : resumption.refused) {
    what.push_back(refusal.what);
    keep.push_back(refusal.keep);
    if (std::find(why.begin(), why.end(), refusal.why) == why.end()) {
      why.push_back(refusal.why);
    }
  }
  const std::string other_run = "or train from step 0 in another run.dir";
  if (!resumption.contents.difference.empty()) {
    throw CheckpointError(fmt::format(
        "{} {} ({}); {}, {}",
        chosen.path.string(),
        describe(resumption.contents.difference),
        what.empty() ? "they are not what its own config says"
                     : fmt::format("{}", fmt::join(what, "; ")),
        keep.empty() ? "use another checkpoint" : fmt::format("keep {}", fmt::join(keep, " ")),
        other_run));
  }
  if (!chosen.config) {
    throw CheckpointError(
        fmt::format("{} does not say in words of this version what it was trained with ({}); go on "
                    "with the version of memphis that wrote it, {}",
                    chosen.path.string(),
                    chosen.config_problem,
                    other_run));
  }
  if (!what.empty()) {
    throw ConfigError(fmt::format("{} does not go on with this config: {} ({}); keep {}, {}",
                                  chosen.path.string(),
                                  fmt::join(what, "; "),
                                  fmt::join(why, "; "),
                                  fmt::join(keep, " "),
                                  other_run));
  }
}

std::string validation_fingerprint(const Config& config, const Dataset& dataset) {
  return config.data.validation.empty() ? std::string() : dataset.validation_fingerprint;
}

bool is_of_run(const Manifest& manifest,
               const Config& config,
               DType compute,
               Device device,
               const std::string& validation) {
  try {
    Config was =
        parse_config(manifest.config, "its config", {}, Check::text, num_writers(manifest));
    if (resolve_compute(was.precision.compute, device) == compute) {
      was.precision = config.precision;
    }
    if (same_validation(was, config, manifest.validation_fingerprint, validation)) {
      was.data.validation = config.data.validation;
    }
    return of_one_run(was, config);
  } catch (const ConfigError&) {
    return false;  // words of another version
  }
}

}  // namespace memphis
