// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/weight_health.h"

#include <spdlog/fmt/fmt.h>

#include "csrc/core/log.h"
#include "csrc/train/agreement.h"

namespace memphis {
namespace {

// What helps against a loss that explodes.
constexpr const char* kCalmer = "with a lower optimizer.learning_rate or optimizer.clip_norm";

}  // namespace

WeightHealth::WeightHealth(const Config& config, const Rotation& rotation, Communicator& all_host)
    : config_(config),
      rotation_(rotation),
      all_host_(all_host),
      leads_(all_host.rank() == 0),
      loss_watch_(config.model.vocab_size, {}) {}

void WeightHealth::go_on_from(const Manifest& manifest) {
  LossWatch::State losses;
  losses.reference = manifest.loss_reference;
  losses.exploded_at = manifest.exploded_at;
  losses.num_calm = manifest.calm_steps;
  losses.set_window(manifest.loss_window);
  loss_watch_ = LossWatch(config_.model.vocab_size, losses);
  weights_are_bad_ = leads_ && loss_watch_.exploded();
}

void WeightHealth::warn_of(const std::string& checkpoint) const {
  if (leads_ && loss_watch_.exploded()) {
    log_warning("{} was saved with weights whose loss had exploded in step {}; {}",
                checkpoint,
                loss_watch_.state().exploded_at,
                way_back(loss_watch_.state().exploded_at));
  }
}

void WeightHealth::observe(std::int64_t step,
                           const StepResult& result,
                           const TrainStep::Skipped& skipped) {
  if (!leads_) {
    return;
  }
  if (result.skipped) {
    log_warning(
        "step {} is left out: its gradient's norm is {}, with loss {:.4g}; {} in a row, of which "
        "optimizer.max_skipped allows {}",
        step,
        result.grad_norm,
        result.loss,
        skipped.in_a_row,
        config_.optimizer.max_skipped);
    return;
  }
  switch (loss_watch_.observe(step, result.loss)) {
    case LossWatch::News::none:
      break;
    case LossWatch::News::exploded:
      log_warning(
          "step {} has loss {:.4g}, above {}: the weights have exploded; until losses are below "
          "that again only the end of the run is saved, and no checkpoint is deleted; {}",
          step,
          result.loss,
          loss_watch_.describe_limit(),
          way_back(step));
      break;
    case LossWatch::News::recovered:
      log_warning("step {} has loss {:.4g}: it has come back below {}; checkpoints are saved again",
                  step,
                  result.loss,
                  loss_watch_.describe_limit());
      break;
  }
  weights_are_bad_ = loss_watch_.exploded();
}

void WeightHealth::observe_validation(std::int64_t step, const std::string& text, double loss) {
  if (!leads_ || weights_are_bad_ || !loss_watch_.exceeds(loss)) {
    return;
  }
  log_warning(
      "step {} has validation loss{} {:.4g}, above {}: its weights have exploded and are not saved "
      "before losses are below that again; {}",
      step,
      text,
      loss,
      loss_watch_.describe_limit(),
      way_back(step + 1));
  weights_are_bad_ = true;
}

bool WeightHealth::are_bad() {
  return largest_of_all(all_host_, weights_are_bad_ ? 1 : 0, "step.health") != 0;
}

void WeightHealth::describe(std::int64_t step, Manifest& manifest) const {
  manifest.loss_reference = loss_watch_.state().reference;
  manifest.loss_window = loss_watch_.state().window();
  manifest.exploded_at = loss_watch_.exploded() ? loss_watch_.state().exploded_at
                         : weights_are_bad_     ? step + 1
                                                : 0;
  manifest.calm_steps = loss_watch_.exploded() ? loss_watch_.state().num_calm : 0;
}

std::string WeightHealth::way_back(std::int64_t step) const {
  return rotation_.way_back(step, kCalmer);
}

DivergedError WeightHealth::with_way_back(const DivergedError& error, std::int64_t step) const {
  const bool exploded = loss_watch_.exploded();
  const std::int64_t since = exploded ? loss_watch_.state().exploded_at : step + 1;
  return DivergedError(
      fmt::format("{}{}: {}",
                  error.what(),
                  exploded ? fmt::format(" (before step {}, where the loss exploded)", since) : "",
                  way_back(since)));
}

}  // namespace memphis
