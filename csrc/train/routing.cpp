// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csrc/comm/together.h"
#include "csrc/train/step.h"

namespace memphis {
namespace {

// What ranks add up are whole numbers, so that all have the same bits: millionths.
constexpr double kMillionth = 1e-6;

double element(const TensorView& like, const void* data, std::size_t index) {
  return like.dtype == DType::f64 ? static_cast<const double*>(data)[index]
                                  : static_cast<double>(static_cast<const float*>(data)[index]);
}

}  // namespace

double effective_number(const std::int64_t* counts, std::int64_t num_experts) {
  const double all = static_cast<double>(std::accumulate(counts, counts + num_experts, 0LL));
  if (all == 0) {
    return 0;
  }
  double entropy = 0;
  for (std::int64_t e = 0; e < num_experts; ++e) {
    const double share = static_cast<double>(counts[e]) / all;
    entropy -= share > 0 ? share * std::log(share) : 0;
  }
  return std::exp(entropy);
}

RouterWatch::RouterWatch(std::int64_t num_layers,
                         std::int64_t num_experts,
                         std::int64_t experts_per_token)
    : limit_(static_cast<double>(experts_per_token) +
             static_cast<double>(num_experts - experts_per_token) / 4),
      looks_L_(static_cast<std::size_t>(num_layers)) {}

std::vector<RouterWatch::News> RouterWatch::observe(const Routing& routing) {
  std::vector<News> news;
  for (std::size_t layer = 0; layer < looks_L_.size(); ++layer) {
    const double effective = routing.effective_experts[layer];
    int& looks = looks_L_[layer];
    if (effective < limit_) {
      if (++looks == kLooks) {
        news.push_back({static_cast<std::int64_t>(layer), effective, true});
      }
      continue;
    }
    if (looks >= kLooks) {
      news.push_back({static_cast<std::int64_t>(layer), effective, false});
    }
    looks = 0;
  }
  return news;
}

Routing TrainStep::routing() {
  const Dims& dims = model_.dims();
  const auto layers = static_cast<std::size_t>(dims.L);
  // Tokens, entropy and kept probability of each layer.
  std::vector<std::int64_t> sums(3 * layers);
  for (std::size_t chunk = 0; chunk < plan_.activations.chunks.size(); ++chunk) {
    const MicroBatch& last =
        pipeline_.slot_of(static_cast<std::int64_t>(chunk), plan_.num_micro_batches - 1);
    for (std::size_t i = 0; i < last.layers.size(); ++i) {
      const TensorView& probs_TE = last.layers[i].router_probs_TE;
      const TensorView& gates_TK = last.layers[i].gates_TK;
      host_probs_.resize(std::max(host_probs_.size(), probs_TE.bytes() + gates_TK.bytes()));
      device_copy(host_probs_.data(), probs_TE.data, probs_TE.bytes(), stream_);
      std::byte* const gates = host_probs_.data() + probs_TE.bytes();
      device_copy(gates, gates_TK.data, gates_TK.bytes(), stream_);
      synchronize(stream_);
      double entropy = 0;
      for (std::size_t n = 0; n < static_cast<std::size_t>(probs_TE.num_elements()); ++n) {
        const double p = element(probs_TE, host_probs_.data(), n);
        entropy -= p > 0 ? p * std::log(p) : 0;
      }
      double kept = 0;
      for (std::size_t n = 0; n < static_cast<std::size_t>(gates_TK.num_elements()); ++n) {
        kept += element(gates_TK, gates, n);
      }
      const auto layer = static_cast<std::size_t>(last.layer_at(i));
      sums[3 * layer] += probs_TE.num_elements() / dims.E;
      sums[3 * layer + 1] += std::llround(entropy / kMillionth);
      sums[3 * layer + 2] += std::llround(kept / kMillionth);
    }
  }
  sum_over_ranks(groups_.all_host(), sums, "step.routing");
  Routing result;
  result.num_experts = dims.E;
  const double most = dims.E > 1 ? std::log(static_cast<double>(dims.E)) : 1;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const std::int64_t* const rows = rows_LE_.data() + layer * static_cast<std::size_t>(dims.E);
    const double share = static_cast<double>(std::accumulate(rows, rows + dims.E, 0LL)) /
                         static_cast<double>(dims.E);
    for (std::int64_t e = 0; e < dims.E; ++e) {
      result.load_LE.push_back(share > 0 ? static_cast<double>(rows[e]) / share : 0);
    }
    result.effective_experts.push_back(effective_number(rows, dims.E));
    const double tokens = static_cast<double>(std::max<std::int64_t>(sums[3 * layer], 1));
    result.entropy.push_back(static_cast<double>(sums[3 * layer + 1]) * kMillionth / tokens / most);
    result.kept_probability.push_back(static_cast<double>(sums[3 * layer + 2]) * kMillionth /
                                      tokens);
  }
  return result;
}

RankTimes TrainStep::rank_times(const StepResult& result) {
  Communicator& all = groups_.all_host();
  std::vector<std::int64_t> times(static_cast<std::size_t>(all.size()));
  const double waited = result.communication ? result.communication->exposed_seconds : 0;
  const double worked =
      result.data_seconds + result.model_seconds + result.optimizer_seconds - waited;
  times[static_cast<std::size_t>(all.rank())] = std::llround(std::max(worked, 0.0) / kMillionth);
  sum_over_ranks(all, times, "step.rank_times");
  const auto slowest = std::max_element(times.begin(), times.end());
  RankTimes ranks;
  ranks.slowest_rank = slowest - times.begin();
  for (const std::int64_t time : times) {
    ranks.seconds.push_back(static_cast<double>(time) * kMillionth);
  }
  ranks.slowest_seconds = static_cast<double>(*slowest) * kMillionth;
  std::nth_element(times.begin(), times.begin() + (all.size() - 1) / 2, times.end());
  ranks.median_seconds =
      static_cast<double>(times[static_cast<std::size_t>((all.size() - 1) / 2)]) * kMillionth;
  return ranks;
}

}  // namespace memphis
