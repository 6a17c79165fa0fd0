// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/question_evaluator.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "csrc/comm/together.h"
#include "csrc/plan/host_memory.h"
#include "csrc/train/window_losses.h"

namespace memphis {

QuestionEvaluator::QuestionEvaluator(const Config& config,
                                     const TrainingPlan& plan,
                                     const Groups& groups,
                                     Grok& model,
                                     Pipeline& pipeline,
                                     const Tokenizer* tokenizer,
                                     Stream stream)
    : plan_(plan),
      groups_(groups),
      model_(model),
      pipeline_(pipeline),
      stream_(stream),
      batch_(plan.validation.shape.num_micro_batches * config.batch.micro_batch,
             config.batch.sequence_length,
             config.model.pad_id,
             stream.device,
             sequence_share(config, plan.share)),
      samples_(config.batch, plan.share),
      micro_batch_(config.batch.micro_batch),
      num_micro_batches_(plan.validation.shape.num_micro_batches),
      losses_(token_losses_bytes(num_micro_batches_ * plan.dims.T), stream.device) {
  together(groups_.all_host(), "evaluate.read", [&] {
    for (const std::string& file : config.data.evaluate) {
      const std::vector<Question> read = read_questions(file);
      questions_.insert(questions_.end(), read.begin(), read.end());
    }
    windows_.emplace(questions_, config.batch.sequence_length, tokenizer);
  });
}

// Of the pass that began with window `first`, once the stream has passed it: by the ranks that have
// the head, of which those along `tensor` have the same losses.
void QuestionEvaluator::add_losses(std::uint64_t first) {
  if (!has_head_ || plan_.share.tensor.index != 0) {
    return;
  }
  const TensorView own(losses_.data(),
                       {num_micro_batches_ * plan_.dims.T},
                       model_.activations().shared.stats.dtype,
                       Device::cpu);
  const std::vector<double> sums = sum_windows(own, plan_.dims.S);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const std::uint64_t window =
        first + static_cast<std::uint64_t>(samples_.place(static_cast<std::int64_t>(i)));
    if (window < window_losses_.size()) {
      window_losses_[window] = sums[i];
    }
  }
}

std::optional<QuestionScores> QuestionEvaluator::run(const std::function<bool()>& gives_up) {
  const auto windows_a_pass =
      static_cast<std::uint64_t>(num_micro_batches_ * micro_batch_ * plan_.share.data.count);
  const auto act = [&](const Action& action, MicroBatch& slot) {
    model_.load(slot, batch_.micro_batch(action.micro_batch * micro_batch_, micro_batch_));
    model_.forward(slot);
    if (slot.stage.head) {
      has_head_ = true;
      model_.token_losses(slot);
      const TensorView& loss_T = slot.tensors.loss_T;
      device_copy(static_cast<std::byte*>(losses_.data()) +
                      static_cast<std::size_t>(action.micro_batch) * loss_T.bytes(),
                  loss_T.data,
                  loss_T.bytes(),
                  stream_);
    }
  };
  window_losses_.assign(windows_->num_samples(), 0);
  for (std::uint64_t first = 0; first < windows_->num_samples(); first += windows_a_pass) {
    synchronize(stream_);  // the batch's memory is filled again
    if (gives_up()) {
      return std::nullopt;
    }
    batch_.fill(*windows_, first, samples_);
    if (!std::exchange(has_run_, true) && pipeline_.receives_on_gpu()) {
      pipeline_.run_first(plan_.validation, std::cref(act));
    }
    pipeline_.run(plan_.validation, std::cref(act));
    synchronize(stream_);
    add_losses(first);
  }
  const TensorView all(window_losses_.data(),
                       {static_cast<std::int64_t>(window_losses_.size())},
                       DType::f64,
                       Device::cpu);
  groups_.all_host().run(AllReduce{.y = all, .x = all}, "evaluate.losses", {});
  QuestionScores scores;
  together(groups_.all_host(), "evaluate.score", [&] {
    scores = score_questions(questions_, window_losses_);
  });
  return scores;
}

}  // namespace memphis
