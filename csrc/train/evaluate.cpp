// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/evaluate.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "csrc/comm/together.h"
#include "csrc/core/progress.h"

namespace memphis {
namespace {

// The first `num_windows` windows of a loader; those behind are all padding, as behind its end.
class FirstWindows {
 public:
  FirstWindows(const ValidationLoader& loader, std::uint64_t num_windows)
      : loader_(loader), num_windows_(num_windows) {}

  std::int64_t sample(std::uint64_t index, const SampleView& out) const {
    return loader_.sample(index < num_windows_ ? index : loader_.num_samples(), out);
  }

 private:
  const ValidationLoader& loader_;
  std::uint64_t num_windows_;
};

// In whole micro-batches of one rank, so that every layout has the same.
std::uint64_t count_windows(const Config& config, const ValidationLoader& loader) {
  const auto limit =
      static_cast<std::uint64_t>(config.metrics.validate_batches * config.batch.micro_batch);
  return limit == 0 ? loader.num_samples() : std::min(limit, loader.num_samples());
}

}  // namespace

Evaluator::Evaluator(const Config& config,
                     const TrainingPlan& plan,
                     const Groups& groups,
                     Grok& model,
                     Pipeline& pipeline,
                     const std::vector<ValidationLoader>& sets,
                     Stream stream)
    : plan_(plan),
      groups_(groups),
      model_(model),
      pipeline_(pipeline),
      sets_(sets),
      stream_(stream),
      batch_(plan.validation.shape.num_micro_batches * config.batch.micro_batch,
             config.batch.sequence_length,
             config.model.pad_id,
             stream.device,
             sequence_share(config, plan.share)),
      samples_(config.batch, plan.share),
      micro_batch_(config.batch.micro_batch),
      windows_a_pass_(static_cast<std::uint64_t>(plan.validation.shape.num_micro_batches *
                                                 micro_batch_ * plan.share.data.count)),
      num_targets_(sets.size()),
      host_scalars_(model.activations().shared.step_scalars),
      host_stats_(model.activations().shared.stats) {
  for (const ValidationLoader& loader : sets) {
    num_windows_.push_back(count_windows(config, loader));
  }
}

std::optional<std::int64_t> Evaluator::count_targets(std::size_t set,
                                                     const std::function<bool()>& gives_up) {
  std::int64_t count = 0;
  for (std::uint64_t first = 0; first < num_windows_[set]; first += windows_a_pass_) {
    if (gives_up()) {
      return std::nullopt;
    }
    together(groups_.all_host(), "validation.count", [&] {
      count += batch_.fill(FirstWindows(sets_[set], num_windows_[set]), first, samples_).targets;
    });
  }
  sum_over_ranks(groups_.data_context_host(), {&count, 1}, "validation.targets");
  return count;
}

std::optional<Evaluator::Result> Evaluator::run(std::size_t set,
                                                const std::function<bool()>& gives_up) {
  std::optional<std::int64_t>& num_targets = num_targets_[set];
  const SharedActivations<TensorView>& shared = model_.activations().shared;
  if (!num_targets) {
    num_targets = count_targets(set, gives_up);
    if (!num_targets) {
      return std::nullopt;
    }
  }
  host_scalars_.set({.target = 1.0F / static_cast<float>(std::max<std::int64_t>(*num_targets, 1))},
                    model_.dims().L);
  host_scalars_.copy_scales(stream_);
  const auto clear = [&] { device_zero(shared.stats.data, shared.stats.bytes(), stream_); };
  const auto act = [&](const Action& action, MicroBatch& slot) {
    model_.load(slot, batch_.micro_batch(action.micro_batch * micro_batch_, micro_batch_));
    model_.forward(slot);
    if (slot.stage.head) {
      model_.loss(slot);
    }
  };
  clear();
  Progress progress("validation", static_cast<std::int64_t>(num_windows_[set]), "windows");
  for (std::uint64_t first = 0; first < num_windows_[set]; first += windows_a_pass_) {
    progress.update(static_cast<std::int64_t>(first));
    synchronize(stream_);  // the batch's memory is filled again
    if (gives_up()) {
      return std::nullopt;
    }
    together(groups_.all_host(), "validation.windows", [&] {
      batch_.fill(FirstWindows(sets_[set], num_windows_[set]), first, samples_);
    });
    if (!std::exchange(has_run_, true) && pipeline_.receives_on_gpu()) {
      pipeline_.run_first(plan_.validation, std::cref(act));
      clear();
    }
    pipeline_.run(plan_.validation, std::cref(act));
  }
  for (Communicator* const ranks : {&groups_.data_context(), &groups_.pipeline()}) {
    ranks->run(AllReduce{.y = shared.stats, .x = shared.stats}, "validation.loss", stream_);
  }
  host_stats_.copy(stream_);
  synchronize(stream_);
  return Result{.loss = host_stats_[Stat::loss], .targets = *num_targets};
}

}  // namespace memphis
