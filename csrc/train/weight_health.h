// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "csrc/checkpoint/manifest.h"
#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/core/error.h"
#include "csrc/train/loss_watch.h"
#include "csrc/train/rotation.h"
#include "csrc/train/step.h"

namespace memphis {

// What losses say of a run's weights: whether they are worth saving, and, where they are not, the way
// back to good ones. The first rank knows and speaks; on the others all is well.
class WeightHealth {
 public:
  // The referents must outlive it.
  WeightHealth(const Config& config, const Rotation& rotation, Communicator& all_host);

  // As a checkpoint has it, and what is said of one that a run begins with.
  void go_on_from(const Manifest& manifest);
  void warn_of(const std::string& checkpoint) const;

  // Of each step in turn.
  void observe(std::int64_t step, const StepResult& result, const TrainStep::Skipped& skipped);
  // Of the weights that `step` has left, which its own loss says nothing of. `text` is empty, or " of "
  // and a name.
  void observe_validation(std::int64_t step, const std::string& text, double loss);

  // As the first rank knows, on every rank. Every rank calls.
  bool are_bad();

  // Writes into `manifest` what a checkpoint of `step` keeps of it.
  void describe(std::int64_t step, Manifest& manifest) const;

  // How to go on from weights that were good before `step`: the last part of an error.
  std::string way_back(std::int64_t step) const;
  // The same behind what is wrong. `step` is the last one whose weights there were.
  DivergedError with_way_back(const DivergedError& error, std::int64_t step) const;

 private:
  const Config& config_;
  const Rotation& rotation_;
  Communicator& all_host_;
  bool leads_;
  LossWatch loss_watch_;
  bool weights_are_bad_ = false;
};

}  // namespace memphis
