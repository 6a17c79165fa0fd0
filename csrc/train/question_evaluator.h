// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/data/questions.h"
#include "csrc/model/grok.h"
#include "csrc/model/pipeline.h"
#include "csrc/plan/training_plan.h"
#include "csrc/train/batch.h"

namespace memphis {

// The questions of data.evaluate, asked of the model that trains, between steps, with its activations.
// Ranks along `data` share the windows out; every rank calls, and has the result, which is the same in
// every layout up to rounding.
class QuestionEvaluator {
 public:
  // Every rank reads the files; if one fails, all throw.
  QuestionEvaluator(const Config& config,
                    const TrainingPlan& plan,
                    const Groups& groups,
                    Grok& model,
                    Pipeline& pipeline,
                    const Tokenizer* tokenizer,  // null: of bytes
                    Stream stream);

  // As Evaluator::run: nothing where it was given up. DivergedError, naming the question, where a loss
  // is not finite.
  std::optional<QuestionScores> run(const std::function<bool()>& gives_up = [] { return false; });
  // Of each window, as the last run() found it.
  std::span<const double> window_losses() const { return window_losses_; }

 private:
  void add_losses(std::uint64_t first);

  const TrainingPlan& plan_;
  const Groups& groups_;
  Grok& model_;
  Pipeline& pipeline_;
  Stream stream_;
  std::vector<Question> questions_;
  std::optional<QuestionWindows> windows_;
  StepBatch batch_;
  SampleShare samples_;
  std::int64_t micro_batch_;
  std::int64_t num_micro_batches_;
  PinnedBuffer losses_;  // of the tokens of a pass
  bool has_head_ = false;
  std::vector<double> window_losses_;
  bool has_run_ = false;
};

}  // namespace memphis
