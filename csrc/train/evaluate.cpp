// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/evaluate.h"

#include <algorithm>

namespace memphis {
namespace {

std::uint64_t num_windows(const Config& config, const ValidationLoader& loader) {
  const auto micro_batch = static_cast<std::uint64_t>(config.batch.micro_batch);
  std::uint64_t batches = (loader.num_samples() + micro_batch - 1) / micro_batch;
  if (config.metrics.validate_batches > 0) {
    batches = std::min(batches, static_cast<std::uint64_t>(config.metrics.validate_batches));
  }
  return batches * micro_batch;
}

}  // namespace

Evaluator::Evaluator(const Config& config,
                     Grok& model,
                     const ValidationLoader& loader,
                     Stream stream)
    : model_(model),
      loader_(loader),
      stream_(stream),
      batch_(config.batch.micro_batch,
             config.batch.sequence_length,
             config.model.pad_id,
             stream.device),
      micro_batch_(config.batch.micro_batch),
      num_windows_(num_windows(config, loader)),
      host_stats_(model.activations().shared.stats) {}

std::int64_t Evaluator::count_targets() {
  std::int64_t count = 0;
  for (std::uint64_t first = 0; first < num_windows_;
       first += static_cast<std::uint64_t>(micro_batch_)) {
    count += batch_.fill(loader_, first).targets;
  }
  return count;
}

Evaluator::Result Evaluator::run() {
  const SharedActivations<TensorView>& shared = model_.activations().shared;
  if (!num_targets_) {
    num_targets_ = count_targets();
  }
  const LossScales scales{.target =
                              1.0F / static_cast<float>(std::max<std::int64_t>(*num_targets_, 1))};
  device_zero(shared.stats.data, shared.stats.bytes(), stream_);
  for (std::uint64_t first = 0; first < num_windows_;
       first += static_cast<std::uint64_t>(micro_batch_)) {
    synchronize(stream_);  // the batch's memory is filled again
    batch_.fill(loader_, first);
    model_.load(batch_.micro_batch(0, micro_batch_));
    model_.forward();
    model_.loss(scales);
  }
  host_stats_.copy(stream_);
  synchronize(stream_);
  return {.loss = host_stats_[Stat::loss], .targets = *num_targets_};
}

}  // namespace memphis
